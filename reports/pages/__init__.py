"""Pages from results: the HTML report and its markdown, the ablation and projection documents, comparison, export."""
