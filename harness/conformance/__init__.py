"""Tests whether a system keeps the adapter contract."""
