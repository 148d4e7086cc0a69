"""The performance gate of `specmoe-bench check`."""
