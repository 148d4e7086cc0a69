"""Tables and sentences of a report."""
