"""Requests that wait outside the fleet until they are let in."""

from gpusched.compilation import entry_kernel
from gpusched.sim.entry import push_pending


@entry_kernel
def let_in(s, rows, now_s, gap_s):
    """Let the given rows of the trace arrive from now on, ``gap_s`` apart."""
    for i in range(len(rows)):
        push_pending(s, now_s + i * gap_s, rows[i])
