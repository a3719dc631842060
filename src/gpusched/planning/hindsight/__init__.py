"""The hindsight optimum of a single engine under a KV budget: what no online policy can beat.

All arrivals and lengths are known. A request started in round ``p`` runs for ``o`` rounds without
interruption and holds ``s + k`` tokens in its ``k``-th; the sum over running requests must stay
within ``M``; the sum of end-to-end latencies is minimised (MC-SF, arXiv 2502.07115, Section 2).
"""

from gpusched.planning.hindsight.bounds import latency_bound
from gpusched.planning.hindsight.improve import best_heuristic
from gpusched.planning.hindsight.optimum import hindsight_optimum
from gpusched.planning.hindsight.prices import price_bound
from gpusched.planning.hindsight.schedule import HindsightSchedule, check_schedule

__all__ = [
    "HindsightSchedule",
    "best_heuristic",
    "check_schedule",
    "hindsight_optimum",
    "latency_bound",
    "price_bound",
]
