"""Prefill and decode workers for sessions of several rounds (AMPD, arXiv 2602.14516).

A round's new tokens are prefilled on top of the session's history, whose KV cache stays on a decode
worker. How many workers of which parallel degree each phase gets is an integer program (``split``);
the load of the phases comes from the trace (``load``), the speed of workers from the timing model
(``workers``), the order of the shortlist from queueing formulas (``queueing``), and the decision from
simulation (``search``).
"""
