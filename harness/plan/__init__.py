"""What is to be measured: experiments, suites, overrides and the order of cells."""
