"""The command line, `specmoe-bench`: one module per command."""
