"""A live router of pipelines: the simulator's functions over one gateway's state."""

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.routing.iwrr import (
    carried_loads,
    expected_tokens,
    has_flow,
    kv_fits,
    least_load,
)
from gpusched.policies.routing.pipelines import PipelineRouting, pipeline_routing

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class PipelineRouter:
    """Interleaved weighted round-robin over planned flows, with its estimate of KV cache.

    Args:
        flows: tokens/s between places, shape (n + 1, n + 1), the front last. A place may be followed
            by those to which it has flow.
        first: first layer of each node, shape (n,).
        count: layers of each node, shape (n,).
        kv_capacity: token-layers of each node, shape (n,).
        longest_prompt: tokens of the longest prompt that each node takes, shape (n,).
        mean_output_tokens: for the KV estimate.
        policy: marks and shares.
    """

    def __init__(
        self,
        flows: Floats,
        first: Integers,
        count: Integers,
        kv_capacity: Floats,
        longest_prompt: Integers,
        mean_output_tokens: float,
        policy: PipelineRouting | None = None,
    ) -> None:
        self.front = len(first)
        self.count = count
        self.end = np.append(first + count, 0)
        self.kv_capacity = kv_capacity
        self.kv_reserved = np.zeros(len(first))
        self.longest_prompt = longest_prompt
        self.mean_output_tokens = mean_output_tokens
        self.policy = policy or pipeline_routing("iwrr")
        self.weight = np.zeros_like(flows)
        self.load = np.zeros_like(flows)
        self.usable = np.zeros(flows.shape, np.bool_)
        self.resolve(flows)

    def resolve(self, flows: Floats) -> None:
        """Go on with new flows, after a node has failed or joined."""
        for place in range(self.front + 1):
            row, new = self.weight[place], flows[place]
            self.load[place] = carried_loads(self.load[place], row, new)
            total = float(new.sum())
            self.usable[place] = [bool(has_flow(float(w), total)) for w in new]
        self.weight = flows.astype(np.float64)

    def route(self, prompt_tokens: int) -> tuple[int, ...] | None:
        """Return the nodes of a request's pipeline and reserve their KV cache; None if it must wait,
        with nothing changed."""
        expected = self._expected(prompt_tokens)
        place, nodes = self.front, list[int]()
        before: list[tuple[int, int, float]] = []
        while True:
            open_ = self.usable[place].copy()
            for node in np.flatnonzero(open_[: self.front]):
                open_[node] = prompt_tokens <= self.longest_prompt[node] and (
                    not self.policy.mask_kv or self._fits(int(node), expected)
                )
            weight, load = self.weight[place], self.load[place]
            chosen = least_load(weight, load, open_, float(prompt_tokens), 0, self.front + 1)
            if chosen < 0:
                for origin, to, value in reversed(before):
                    self.load[origin, to] = value
                return None
            before.append((place, chosen, float(load[chosen])))
            load[chosen] += prompt_tokens / weight[chosen]
            if chosen == self.front:
                break
            nodes.append(int(chosen))
            place = chosen
        self._reserve(nodes, expected)
        return tuple(nodes)

    def decode(self, nodes: tuple[int, ...], tokens: int = 1) -> None:
        """Count tokens that a request decodes on its pipeline."""
        for origin, to in zip((self.front, *nodes), (*nodes, self.front), strict=True):
            if self.weight[origin, to] > 0:
                self.load[origin, to] += tokens / self.weight[origin, to]

    def finish(self, nodes: tuple[int, ...], prompt_tokens: int) -> None:
        """Give back the KV cache of a request."""
        self._reserve(nodes, -self._expected(prompt_tokens))

    def _expected(self, prompt_tokens: int) -> int:
        share = self.policy.output_share
        return int(expected_tokens(prompt_tokens, share, self.mean_output_tokens))

    def _fits(self, node: int, expected: int) -> bool:
        reserved, capacity = float(self.kv_reserved[node]), float(self.kv_capacity[node])
        layers, mark = int(self.count[node]), self.policy.kv_high_water
        return bool(kv_fits(reserved, capacity, expected, layers, mark))

    def _reserve(self, nodes: tuple[int, ...] | list[int], tokens: int) -> None:
        done = 0
        for node in nodes:
            self.kv_reserved[node] += tokens * (self.end[node] - done)
            done = self.end[node]
