"""The shared runner: cells, limits, telemetry, records and the command line."""
