"""Runs cells in worker processes and collects their records."""
