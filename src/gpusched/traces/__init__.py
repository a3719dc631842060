"""Where requests come from: the columnar trace, readers of published formats, generators."""

from gpusched.traces.trace import Trace

__all__ = ["Trace"]
