"""Pages: the report, comparisons, ablations, the projection and exports."""
