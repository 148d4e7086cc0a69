"""Adapters: one file per system, all behind ``baselines.contract``."""
