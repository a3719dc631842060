"""Stages over regions with slow links between them: each region holds one run of layers.

A flow crosses a border between regions over the links from the last stage of one to the first stage
of the next, so their widths must multiply to enough links. The stages of all regions, widened at the
borders, are one small integer program for each order of the regions.
"""

from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from gpusched.planning.layers.flow import Network
from gpusched.planning.layers.stages import Stage, StageSets, trim
from gpusched.solve.milp import Program
from gpusched.timing.machines import Placement

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_ORDERS = 24
"""Orders of regions to try."""


class RegionStages:
    """The regions of a fleet, and the stages each could have."""

    def __init__(self, network: Network, *, widest: int = 4, deepest: int | None = None) -> None:
        self.network, self.widest, self.deepest = network, widest, deepest
        machines = network.machines
        names = np.array(machines.regions)
        self.names = list(dict.fromkeys(machines.regions))
        self.nodes = [np.flatnonzero(names == name) for name in self.names]
        kinds = len(machines.kinds)
        self.sets = [
            StageSets(
                network.tables, np.bincount(machines.kind_of[nodes], minlength=kinds), widest=widest
            )
            for nodes in self.nodes
        ]

    def orders(self) -> Iterator[tuple[int, ...]]:
        """Orders of all regions, then of fewer, at most ``MOST_ORDERS``."""
        count = len(self.names)
        found = 0
        for size in range(count, 0, -1):
            for order in permutations(range(count), size):
                yield order
                found += 1
                if found >= MOST_ORDERS:
                    return

    def link(self, origin: int, to: int) -> float:
        """Tokens/s that a link from one region to another carries on average."""
        return float(self.network.links[np.ix_(self.nodes[origin], self.nodes[to])].mean())

    def choose(
        self, order: Sequence[int], tokens_per_s: float, *, time_limit_s: float = 3.0
    ) -> Placement | None:
        """Return a placement of the fewest stages that carries a flow through the regions in this
        order, or None."""
        options = [self.sets[region].stages(tokens_per_s) for region in order]
        if not all(options):
            return None
        program = Program()
        last = len(order) - 1
        reach: list[tuple[Ints, Ints]] = []
        chosen: list[dict[str, Ints]] = []
        for at, (region, stages) in enumerate(zip(order, options, strict=True)):
            layers = np.array([stage.layers for stage in stages])
            roles = ["inner"]
            roles += ["enter"] if at > 0 else []
            roles += ["leave"] if at < last else []
            roles += ["both"] if 0 < at < last else []
            ys = {
                role: program.variables(
                    len(stages), cost=1.0, upper=float(self.network.n), integer=True
                )
                for role in roles
            }
            chosen.append(ys)
            reach += [(y, layers) for y in ys.values()]
            use = np.array([stage.count(len(self.network.tables)) for stage in stages])
            for kind, number in enumerate(self.sets[region].numbers):
                if use[:, kind].any():
                    y = np.concatenate(list(ys.values()))
                    program.row(y, np.tile(use[:, kind], len(ys)), upper=float(number))
            for role in ("enter", "leave"):
                if role in ys:
                    y = np.concatenate([ys[role], *([ys["both"]] if "both" in ys else [])])
                    program.row(y, lower=1.0, upper=1.0)
        total = self.network.machines.layers
        program.row(
            np.concatenate([y for y, _ in reach]), np.concatenate([k for _, k in reach]),
            lower=float(total),
        )  # fmt: skip
        if self.deepest is not None:
            program.row(np.concatenate([y for y, _ in reach]), upper=float(self.deepest))
        for at in range(last):
            self._border(program, order, at, options, chosen, tokens_per_s)
        found = program.solve(time_limit_s=time_limit_s, relative_gap=0.05)
        if not len(found.values):
            return None
        runs: list[list[Stage]] = []
        for stages, ys in zip(options, chosen, strict=True):
            picked = {
                role: [
                    stage
                    for stage, times in zip(
                        stages, found.values[y].round().astype(int), strict=True
                    )
                    for _ in range(times)
                ]
                for role, y in ys.items()
            }
            runs.append(
                picked.get("enter", []) + picked["inner"] + picked.get("both", [])
                + picked.get("leave", [])
            )  # fmt: skip
        return self._place(order, runs, tokens_per_s)

    def _border(
        self,
        program: Program,
        order: Sequence[int],
        at: int,
        options: Sequence[Sequence[Stage]],
        chosen: Sequence[dict[str, Ints]],
        tokens_per_s: float,
    ) -> None:
        """Let only widths meet that make enough links."""
        capacity = self.link(order[at], order[at + 1])
        leave, enter = chosen[at], chosen[at + 1]
        out = np.concatenate([leave["leave"], *([leave["both"]] if "both" in leave else [])])
        into = np.concatenate([enter["enter"], *([enter["both"]] if "both" in enter else [])])
        width_out = np.tile([len(s.kinds) for s in options[at]], len(out) // len(options[at]))
        width_in = np.tile(
            [len(s.kinds) for s in options[at + 1]], len(into) // len(options[at + 1])
        )
        for wide in range(1, self.widest + 1):
            need = np.inf if capacity <= 0 else np.ceil(tokens_per_s / (capacity * wide) - 1e-9)
            # a narrow end needs a wide one across
            narrow, enough = width_out <= wide, width_in >= need
            columns = np.concatenate((out, into))
            values = np.concatenate((narrow.astype(float), -enough.astype(float)))
            program.row(columns, values, upper=0.0)

    def _place(
        self, order: Sequence[int], runs: Sequence[Sequence[Stage]], tokens_per_s: float
    ) -> Placement | None:
        machines = self.network.machines
        flat = [(region, stage) for region, run in zip(order, runs, strict=True) for stage in run]
        stages = trim([stage for _, stage in flat], machines.layers, self.sets[0], tokens_per_s)
        if stages is None or len(stages) != len(flat):
            return None
        free = {
            (region, kind): [
                int(node) for node in self.nodes[region] if machines.kind_of[node] == kind
            ]
            for region in order
            for kind in range(len(machines.kinds))
        }
        first, count = np.zeros(self.network.n, np.int64), np.zeros(self.network.n, np.int64)
        begin = 0
        for (region, _), stage in zip(flat, stages, strict=True):
            for kind in stage.kinds:
                node = free[region, kind].pop(0)
                first[node], count[node] = begin, stage.layers
            begin += stage.layers
        return Placement(first, count)

    def best(self, order: Sequence[int], *, least: float = 0.0) -> tuple[float, Placement] | None:
        """Return the largest flow for an order, links taken at their mean, and its placement."""
        flows = np.unique(np.concatenate([self.sets[region].flows() for region in order]))
        flows = flows[flows > least]
        low, high = -1, len(flows)
        best: tuple[float, Placement] | None = None
        while high - low > 1:
            middle = (low + high) // 2
            placement = self.choose(order, float(flows[middle]))
            if placement is None:
                high = middle
            else:
                low, best = middle, (float(flows[middle]), placement)
        return best
