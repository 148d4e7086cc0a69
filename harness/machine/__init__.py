"""This machine: limits that can be enforced, counters that can be read, calibrated ceilings."""
