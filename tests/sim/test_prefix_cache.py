import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.policies.caching.eviction import EVICTION, eviction_policy, worth
from gpusched.sim.prefix_cache.replay import replay_cache
from gpusched.traces.reuse import hit_curve
from gpusched.traces.trace import Prefixes, Trace

BLOCK = 4


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Requests along random paths of a tree of blocks."""
    parents = [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(1, 12)))]
    rows, prompts = [], []
    for _ in range(draw(st.integers(1, 25))):
        node, path = draw(st.integers(0, len(parents) - 1)), []
        while node >= 0:
            path.append(node)
            node = parents[node]
        rows.append(path[::-1])
        prompts.append(draw(st.integers(1, BLOCK * len(path))))
    gaps = draw(st.lists(st.integers(1, 9), min_size=len(rows), max_size=len(rows)))
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    return Trace(
        np.cumsum(gaps).astype(np.float64),
        np.array(prompts, np.int32),
        np.ones(len(rows), np.int32),
        prefix=Prefixes(offsets, np.array([b for r in rows for b in r], np.int32), BLOCK),
    )


def plainly(
    trace: Trace, rooms: list[int], kind: int, saving: np.ndarray, resize: list[tuple[float, int]]
) -> np.ndarray:
    """Replay by looking at every block for every choice."""
    assert trace.prefix is not None
    parent: dict[int, int] = {}
    depth: dict[int, int] = {}
    tier: dict[int, int] = {}
    hits: dict[int, int] = {}
    used: dict[int, int] = {}
    last: dict[int, float] = {}
    key: dict[int, float] = {}
    clock, rooms, resize = [0.0] * len(rooms), list(rooms), list(resize)
    uses, counted = 0, np.zeros((len(trace), len(rooms)), np.int64)

    def spill(t: int, now: float) -> None:
        loose = [
            b
            for b in tier
            if tier[b] == t and not any(parent[c] == b and tier[c] <= t for c in tier)
        ]

        def value(b: int) -> tuple[float, int]:
            if kind == EVICTION["least-carbon-savings"].kind:
                return worth.py_func(
                    kind, hits[b], saving[depth[b]], used[b], last[b], now, 0
                ), used[b]
            return key[b], used[b]

        out = min(loose, key=value)
        clock[t] = key[out]
        del tier[out]
        if t + 1 < len(rooms):
            enter(out, t + 1, now)

    def enter(b: int, t: int, now: float) -> None:
        tier[b] = t
        key[b] = worth.py_func(kind, hits[b], saving[depth[b]], used[b], last[b], now, clock[t])

    for row in range(len(trace)):
        now = float(trace.arrival_s[row])
        while resize and resize[0][0] <= now:
            rooms[-1] = resize.pop(0)[1]
            while sum(t == len(rooms) - 1 for t in tier.values()) > rooms[-1]:
                spill(len(rooms) - 1, now)
        ids = [
            int(b)
            for b in trace.prefix.block_ids[
                trace.prefix.offsets[row] : trace.prefix.offsets[row + 1]
            ]
        ]
        left = int(trace.prompt_tokens[row])
        for b in ids:
            if b not in tier or left <= 0:
                break
            counted[row, tier[b]] += min(left, BLOCK)
            left -= BLOCK
        for at, b in enumerate(ids):
            parent[b], depth[b] = (ids[at - 1] if at else -1), at
            hits[b] = hits.get(b, 0) + 1
            used[b], last[b] = uses + len(ids) - at, now
            fastest = tier[parent[b]] if at else 0
            enter(b, min(tier.get(b, fastest), fastest), now)
            for t in range(len(rooms)):
                while sum(held == t for held in tier.values()) > rooms[t]:
                    spill(t, now)
            if b not in tier:
                break
        uses += len(ids)
        assert all(parent[b] < 0 or tier[parent[b]] <= tier[b] for b in tier)
    return counted


@given(data=st.data(), trace=traces(), rule=st.sampled_from(sorted(EVICTION)))
@settings(max_examples=150, deadline=None)
def test_replay_is_that_of_looking_at_every_block(
    data: st.DataObject, trace: Trace, rule: str
) -> None:
    rooms = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    saving = np.array(data.draw(st.lists(st.integers(1, 9), min_size=12, max_size=12)), float)
    resize = [(20.0, data.draw(st.integers(0, 3)))] if data.draw(st.booleans()) else []
    found = replay_cache(
        trace,
        [room * BLOCK for room in rooms],
        eviction=rule,
        saving=saving,
        resize=[(time_s, room * BLOCK) for time_s, room in resize],
    )
    expected = plainly(trace, rooms, EVICTION[rule].kind, saving, resize)
    assert np.array_equal(found.hit_tokens, expected)
    assert (found.peak_tokens <= np.array(rooms) * BLOCK).all() or resize


@given(trace=traces(), blocks=st.integers(0, 13))
@settings(max_examples=60, deadline=None)
def test_one_tier_of_lru_lies_on_the_hit_curve(trace: Trace, blocks: int) -> None:
    found = replay_cache(trace, [blocks * BLOCK])
    assert found.hit_ratio == pytest.approx(float(hit_curve(trace).at(blocks * BLOCK)))


@given(trace=traces(), rooms=st.lists(st.integers(0, 4), min_size=2, max_size=3))
@settings(max_examples=60, deadline=None)
def test_tiers_of_lru_hit_as_one_of_their_joint_size(trace: Trace, rooms: list[int]) -> None:
    several = replay_cache(trace, [room * BLOCK for room in rooms])
    assert several.hit_ratio == pytest.approx(replay_cache(trace, [sum(rooms) * BLOCK]).hit_ratio)


def test_bad_input_is_named() -> None:
    trace = Trace(np.zeros(1), np.ones(1, np.int32), np.ones(1, np.int32))
    with pytest.raises(InputError, match="shared prefixes"):
        replay_cache(trace, [8])
    with pytest.raises(InputError, match="eviction policy"):
        eviction_policy("lur")
