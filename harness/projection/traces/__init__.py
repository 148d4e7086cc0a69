"""Routing and acceptance traces: what a run asked of its experts, without the model.

``trace`` holds the data, ``recorder`` fills it from a run, ``files`` keeps it as parquet, ``synthetic`` makes
some with stated skew, locality and acceptance, ``describe`` measures those of any trace.
"""

from harness.projection.traces.trace import Geometry, Pass, Trace, TraceError

__all__ = ["Geometry", "Pass", "Trace", "TraceError"]
