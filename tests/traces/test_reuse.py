from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.traces.reuse import hit_curve
from gpusched.traces.trace import Prefixes, Trace

BLOCK = 4


def trace_of(rows: list[list[int]], prompts: list[int]) -> Trace:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    ids = np.array([block for row in rows for block in row], np.int32)
    return Trace(
        np.arange(len(rows), dtype=np.float64),
        np.array(prompts, np.int32),
        np.ones(len(rows), np.int32),
        prefix=Prefixes(offsets, ids, BLOCK),
    )


def lru_hits(trace: Trace, blocks: int) -> int:
    assert trace.prefix is not None
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row, prompt in enumerate(trace.prompt_tokens):
        ids = trace.prefix.block_ids[trace.prefix.offsets[row] : trace.prefix.offsets[row + 1]]
        for depth, block in enumerate(ids):
            if int(block) not in cache:
                break
            hits += max(min(int(prompt) - depth * BLOCK, BLOCK), 0)
        for block in ids[::-1]:
            cache[int(block)] = None
            cache.move_to_end(int(block))
            while len(cache) > blocks:
                cache.popitem(last=False)
    return hits


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_curve_is_that_of_an_lru_cache_of_each_size(data: st.DataObject) -> None:
    """Rows are paths of a random tree of blocks, each node reached by its parent alone."""
    parents = data.draw(st.lists(st.integers(-1, 6), min_size=1, max_size=8))
    parents = [min(parent, node - 1) for node, parent in enumerate(parents)]
    rows, prompts = [], []
    for _ in range(data.draw(st.integers(1, 12))):
        node, path = data.draw(st.integers(0, len(parents) - 1)), []
        while node >= 0:
            path.append(node)
            node = parents[node]
        rows.append(path[::-1])
        prompts.append(data.draw(st.integers(1, BLOCK * len(path))))
    trace = trace_of(rows, prompts)
    curve = hit_curve(trace)
    for blocks in range(len(parents) + 1):
        expected = lru_hits(trace, blocks) / trace.prompt_tokens.sum()
        assert curve.at(blocks * BLOCK) == pytest.approx(expected), blocks


def test_warm_up_fills_the_cache_but_is_not_counted() -> None:
    trace = trace_of([[0, 1], [0, 1]], [8, 8])
    assert hit_curve(trace).at(8) == 0.5
    assert hit_curve(trace, warm_from=1).at(8) == 1.0


def test_without_prefixes_there_is_nothing_to_hit() -> None:
    trace = Trace(np.zeros(1), np.ones(1, np.int32), np.ones(1, np.int32))
    with pytest.raises(InputError, match="shared prefixes"):
        hit_curve(trace)
