"""Routing and acceptance traces: which experts a run used and which tokens it accepted, without the model.

``trace`` is the data, ``recorder`` fills it from a run, ``files`` stores it as parquet, ``synthetic`` generates traces
of stated skew, locality and acceptance, ``describe`` measures these in any trace.
"""

from harness.projection.traces.trace import Geometry, Pass, Trace, TraceError

__all__ = ["Geometry", "Pass", "Trace", "TraceError"]
