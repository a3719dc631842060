"""The fluid equilibrium: worked instances, closed forms, brute force, and the simulator's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.policies.batching.equilibrium import (
    AffineTime,
    EngineTime,
    RequestTypes,
    affine_of,
    equilibrium,
    grouped_types,
    life_sums,
    types_of,
)
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Trace


@pytest.mark.parametrize(("fixed_s", "token_s"), [(0.4, 0.05), (0.76, 0.02)])
def test_one_token_prompts_and_answers(fixed_s, token_s):
    balance = equilibrium(RequestTypes.of(4.0, 1, 1), AffineTime(fixed_s, token_s), 12.0)
    assert balance.per_stage == pytest.approx([4.0])
    assert balance.memory_tokens == pytest.approx(12.0)
    assert balance.iteration_s == pytest.approx(1.0)
    assert balance.decode_tokens_per_s == 4.0
    assert balance.stable_multiple == pytest.approx(1.0)


def test_two_types():
    types = RequestTypes.of([20, 5], 100, [10, 40])
    assert types.lifetime_tokens.tolist() == [1155, 4920]
    balance = equilibrium(types, AffineTime(0.02, 1e-6), 1e5)
    assert balance.memory_tokens == pytest.approx(1001.785, abs=1e-3)
    assert balance.iteration_s == pytest.approx(21.0018e-3, abs=1e-7)
    assert balance.per_stage == pytest.approx([0.42004, 0.10501], abs=1e-5)
    assert balance.decode_tokens_per_s == 400


def test_near_critical_load():
    balance = equilibrium(RequestTypes.of([400, 100], 100, [10, 40]), AffineTime(0.02, 1e-6), 1e6)
    assert balance.load == pytest.approx(0.954)
    assert balance.memory_tokens == pytest.approx(414_782.6, abs=0.1)
    assert balance.iteration_s == pytest.approx(0.434783, abs=1e-6)
    assert balance.per_stage == pytest.approx([173.913, 43.478], abs=1e-3)


def test_printed_memory_of_a_chat_load_follows_from_two_of_its_columns():
    slope, ratio, fixed_s = 3.346371e-3, 3.78382e-5, 0.013
    lifetime = 1.0 / (slope * fixed_s)
    types = RequestTypes.of(1.0, lifetime / 148 - 147 / 2, 147)
    time = AffineTime(fixed_s, ratio * fixed_s)
    printed = {50: 34_377, 60: 55_758, 70: 100_330, 80: 250_537}
    for rate, memory in printed.items():
        found = equilibrium(types.scale_rate(rate), time, 1.37e5)
        assert found.memory_tokens == pytest.approx(memory, rel=2e-5)
        assert found.stable == (rate < 74)
        assert rate * found.stable_multiple == pytest.approx(74.14, abs=0.01)
    assert 1 / equilibrium(types, time).load == pytest.approx(88.4, abs=0.05)


rates = st.floats(0.01, 50.0)
loads = st.lists(st.tuples(rates, st.integers(1, 500), st.integers(0, 200)), min_size=1, max_size=4)


@given(loads, st.floats(1e-3, 1.0), st.floats(1e-9, 1e-4), st.floats(0.05, 0.95))
def test_closed_form(load, fixed_s, token_s, share):
    rate, prompt, steps = (np.array(x, float) for x in zip(*load, strict=True))
    types = RequestTypes.of(rate, prompt, steps)
    w = (steps + 1) * (prompt + steps / 2)
    assert types.lifetime_tokens == pytest.approx(w)
    scale = share / (token_s * float(rate @ w))
    types, rate = types.scale_rate(scale), rate * scale
    balance = equilibrium(types, AffineTime(fixed_s, token_s), 1e9)
    tokens = float(rate @ w)
    assert balance.load == pytest.approx(share, rel=1e-6)
    assert balance.iteration_s == pytest.approx(fixed_s / (1 - share), rel=1e-6)
    assert balance.memory_tokens == pytest.approx(fixed_s * tokens / (1 - share), rel=1e-6)
    critical = 1e9 / (fixed_s + token_s * 1e9) / tokens
    assert balance.stable_multiple == pytest.approx(critical, rel=1e-6)


@given(loads, st.integers(0, 3), st.floats(0.01, 0.5))
def test_memory_is_increasing_and_convex_in_each_rate(load, index, step):
    rate, prompt, steps = (np.array(x, float) for x in zip(*load, strict=True))
    time = AffineTime(0.02, 1e-9)
    index %= len(rate)

    def memory(more):
        grown = rate.copy()
        grown[index] += more
        return equilibrium(RequestTypes.of(grown, prompt, steps), time).memory_tokens

    low, middle, high = memory(0.0), memory(step), memory(2 * step)
    assert low < middle < high
    assert high - middle >= (middle - low) * (1 - 1e-9)


def test_memory_grows_with_the_square_of_the_answer():
    time = AffineTime(0.01, 0.0)
    memory = [equilibrium(RequestTypes.of(1, 1, n), time).memory_tokens for n in (10_000, 20_000)]
    assert memory[1] / memory[0] == pytest.approx(4.0, rel=1e-3)


def test_without_a_cost_a_token_iterations_take_the_fixed_time():
    balance = equilibrium(RequestTypes.of([3, 0], 10, [4, 9]), AffineTime(0.5, 0.0), 1e4)
    assert balance.iteration_s == 0.5
    assert balance.memory_tokens == pytest.approx(0.5 * 3 * 5 * 12)
    assert balance.per_stage.tolist() == [1.5, 0.0]
    assert balance.load == 0.0


def test_a_type_that_never_arrives_changes_nothing():
    time = AffineTime(0.02, 1e-6)
    alone = equilibrium(RequestTypes.of(20, 100, 10), time, 1e5)
    beside = equilibrium(RequestTypes.of([20, 0], 100, [10, 400]), time, 1e5)
    assert beside.memory_tokens == pytest.approx(alone.memory_tokens)
    assert beside.stable_multiple == pytest.approx(alone.stable_multiple)


def test_overload_is_told_with_the_rate_that_would_be_stable():
    types, time = RequestTypes.of(1000, 100, 10), AffineTime(0.02, 1e-6)
    balance = equilibrium(types, time, 1e5)
    assert balance.load == pytest.approx(1.155)
    assert np.isinf(balance.iteration_s)
    assert not balance.stable
    with pytest.raises(InfeasibleError, match=r"1\.16 s of work.*at most 721\.5 requests/s"):
        balance.require_stable(1000)
    assert equilibrium(types.scale_rate(0.7215), time, 1e5).stable
    assert not equilibrium(types.scale_rate(0.7217), time, 1e5).stable


def test_a_load_beyond_memory_but_not_beyond_speed_says_so():
    balance = equilibrium(RequestTypes.of(500, 100, 10), AffineTime(0.02, 1e-6), 2e4)
    assert balance.load < 1
    with pytest.raises(
        InfeasibleError, match=r"hold 27,3\d\d tokens.*above the capacity of 20,000"
    ):
        balance.require_stable(500)


@pytest.mark.parametrize("window", [0, 7, 40])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_sums_over_a_life_equal_a_loop(window, first):
    prompt, last = 20, 31
    sums = np.zeros(7)
    for stage in range(first, last + 1):
        if stage == 0:
            keys = np.arange(1, prompt + 1)
            sums[:4] += 1, prompt, keys.sum(), np.minimum(keys, window).sum()
        else:
            sums[4:] += 1, prompt + stage, min(prompt + stage, window)
    found = life_sums(np.array([20.0]), np.array([31.0]), window, first)
    assert found[0] == pytest.approx(sums)


def test_types_of_a_sample_keep_exact_means():
    rng = np.random.default_rng(1)
    prompt, output = rng.integers(1, 300, 500), rng.integers(1, 200, 500)
    types = types_of(prompt, output, 12.0, groups=5)
    assert types.rate_rps.sum() == pytest.approx(12.0)
    lifetime = [sum(p + s for s in range(o)) for p, o in zip(prompt, output, strict=True)]
    assert types.rate_rps @ types.lifetime_tokens == pytest.approx(12.0 * np.mean(lifetime))
    assert types.last_step[-1] == output.max() - 1
    held = np.concatenate([p + np.arange(o) for p, o in zip(prompt, output, strict=True)])
    one = types_of(prompt, output, 12.0, groups=1)
    assert one.variance[0] == pytest.approx(held.var())


def test_weights_count_a_request_several_times():
    prompt, steps = np.array([10.0, 20.0, 30.0]), np.array([4.0, 8.0, 2.0])
    group, rate = np.array([0, 0, 1]), np.array([1.0, 2.0])
    weighted = grouped_types(prompt, steps, group, rate, [8, 2], weight=np.array([2.0, 1.0, 5.0]))
    rows = [0, 0, 1, 2]
    copied = grouped_types(prompt[rows], steps[rows], group[rows], rate, [8, 2])
    for name in ("prompt_tokens", "decode_steps", "sums", "variance"):
        assert getattr(weighted, name) == pytest.approx(getattr(copied, name))


def test_a_fit_finds_an_affine_time_again():
    fit = affine_of(AffineTime(0.013, 5e-7), RequestTypes.of([1, 2], [256, 30], [20, 70]))
    assert (fit.fixed_s, fit.token_s, fit.r2) == pytest.approx((0.013, 5e-7, 1.0))
    assert fit.mean_relative_error < 1e-9


def engine(slots=64):
    n = np.arange(4097.0)
    b = np.arange(slots + 1.0)
    return CompiledTiming(
        5e-3 + 2e-5 * n, 5e-3 + 3e-5 * b, 1e-6 * b, 4e-7, 0.0, 0, 3e-4, 4e-4, 2e-9, 0.0
    )


def test_the_simulator_settles_at_the_equilibrium():
    rng = np.random.default_rng(0)
    n, rate, prompt, output = 20_000, 20.0, 100, 41
    arrivals = np.cumsum(rng.exponential(1 / rate, n))
    trace = Trace(arrivals, np.full(n, prompt, np.int32), np.full(n, output, np.int32))
    pool = Pool("one", engine(), kv_blocks=4000, max_num_seqs=64, max_num_batched_tokens=4096)
    result = simulate(Fleet((pool,)), trace)
    balance = equilibrium(RequestTypes.of(rate, prompt, output - 1), EngineTime(pool.timing), 64e3)
    busy_s = result.pools[0].busy_s / result.pools[0].iterations
    assert busy_s == pytest.approx(balance.iteration_s, rel=0.05)
    running = rate * (result.finish_s - result.admitted_s).mean()
    assert running == pytest.approx(balance.per_stage[0] * output, rel=0.05)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AffineTime(0.0, 1.0), "fixed_s > 0"),
        (lambda: AffineTime(1.0, np.nan), "token_s >= 0"),
        (lambda: RequestTypes.of([1, -1], 1, 1), "entry 1 is -1"),
        (lambda: RequestTypes.of(1, 0, 1), "prompt_tokens must be finite and at least 1"),
        (lambda: RequestTypes.of(np.inf, 1, 1), "rate_rps"),
        (lambda: types_of([], [], 1.0), "not empty"),
        (lambda: types_of([5, 5], [1, 0], 1.0), "output_tokens .*entry 1 is 0"),
        (lambda: types_of([5], [5], 1.0, groups=0), "groups"),
        (lambda: equilibrium(RequestTypes.of(1, 1, 1), AffineTime(1, 0), 0.0), "KV capacity"),
        (lambda: affine_of(AffineTime(1, 0), RequestTypes.of(1, 1, 1), [3, 3]), "two different"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()
