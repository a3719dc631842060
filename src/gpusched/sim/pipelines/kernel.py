"""The event loop over nodes and links.

A place has one event at a time: a node the end of the segment it runs, or the next arrival when it
is idle; the front its next token or request. What a link delivers is known when it is sent, since
links serve in order, so links need no events.
"""

import math

from gpusched.compilation import entry_kernel
from gpusched.sim.pipelines.front import admit_waiting, front_event, front_next_s
from gpusched.sim.pipelines.lists import drain, schedule
from gpusched.sim.pipelines.node import node_event
from gpusched.sim.pipelines.state import DONE, NEEDS_JOBS, REACHED


@entry_kernel
def run(s, until_s):
    """Advance to ``until_s``, or until nothing is left to do, and say which."""
    g = s.g[0]
    front = len(s.nodes) - 1
    admit_waiting(s, g.now_s)
    schedule(s, front, front_next_s(s))
    while not g.starved:
        place = s.winner[1]
        now_s = s.next_s[place]
        if now_s == math.inf:
            return DONE
        if now_s > until_s:
            g.now_s = until_s
            return REACHED
        g.now_s = now_s
        g.steps += 1
        if place == front:
            front_event(s, now_s)
        else:
            node_event(s, place, now_s)
    return NEEDS_JOBS


@entry_kernel
def settle(s, now_s):
    """Queue every job that has reached its node."""
    for node in range(len(s.nodes) - 1):
        drain(s, node, now_s)
