"""Admission and routing in front of the engines, by hand-checked behaviour."""

import itertools

import numpy as np
import pytest
from fleets import timing, trace

from gpusched.errors import InputError
from gpusched.sim.fleet import Fleet, KvLink, Pool
from gpusched.sim.simulate import simulate
from gpusched.traces.trace import Trace


def pool(**changes):
    settings = {"name": "a", "timing": timing(), "kv_blocks": 4000, "max_num_seqs": 32}
    return Pool(**{**settings, **changes})


@pytest.fixture
def write(tmp_path):
    def written(source, name="f"):
        file = tmp_path / "own.py"
        file.write_text(source)
        return f"{file}:{name}"

    return written


def test_a_users_admission_puts_off_and_rejects(write):
    source = (
        "import math\n\n\ndef f(request, fleet, most=3.0):\n"
        "    if fleet.requests < most:\n        return 0.0\n"
        "    return 0.05 if fleet.now_s < request.arrival_s + 0.4 else math.inf\n"
    )
    requests = trace(80, 60.0, 3)
    result = simulate(Fleet((pool(),), admission=write(source)), requests)
    running = [
        int(((result.admitted_s <= t) & (t < result.finish_s)).sum()) for t in result.admitted_s
    ]
    assert max(running) <= 3
    assert 0 < result.rejected.sum() < len(requests)
    late = result.admitted_s - result.arrival_s
    assert np.nanmax(late) < 0.45 + 0.05


def test_a_users_admission_that_never_admits_is_told(write):
    policy = write("def f(request):\n    return 1.0\n")
    with pytest.raises(InputError, match=r"admission policy .*:f holds request 0 again and again"):
        simulate(Fleet((pool(),), admission=policy), trace(3, 5.0, 0))


@pytest.mark.parametrize("kind", ["routing", "admission"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1.0 / (request.prompt_tokens - request.prompt_tokens)", "raised ZeroDivisionError"),
        ("math.nan", "returned nan"),
    ],
)
def test_a_users_function_that_fails_is_named_with_the_request(write, kind, body, words):
    policy = write(f"import math\n\n\ndef f(request):\n    return {body}\n")
    fleet = Fleet((pool(replicas=2),), **{kind: policy})
    with pytest.raises(InputError, match=rf"policy .*:f {words}.* for request 0"):
        simulate(fleet, trace(5, 5.0, 0))


def test_a_users_routing_sees_loads_and_prefixes(write):
    source = (
        "def f(replica, request):\n"
        "    return -1000.0 * replica.has_prefix + replica.requests + 0.1 * replica.position\n"
    )
    shared = trace(60, 20.0, 5, prefixes=4)
    fleet = Fleet((pool(replicas=4, prefix_caching=False),), routing=write(source))
    result = simulate(fleet, shared)
    family = [tuple(shared.prefix.block_ids[shared.prefix.offsets[i] :][:1]) if
              shared.prefix.offsets[i + 1] > shared.prefix.offsets[i] else None for i in range(60)]  # fmt: skip
    for name in {f for f in family if f is not None}:
        own = [result.replica[i] for i in range(60) if family[i] == name]
        assert len(set(own)) == 1


def test_rounds_of_a_session_stay_together_until_overloaded():
    requests = trace(90, 40.0, 7, sessions=True)
    loyal = simulate(
        Fleet((pool(replicas=4),), routing="session-affinity+slack_requests=1000"), requests
    )
    for session in np.unique(requests.session_id):
        assert len(set(loyal.replica[requests.session_id == session])) == 1
    guarded = Fleet((pool(replicas=4),), routing="session-affinity+slack_requests=0+factor=1")
    moved = simulate(guarded, requests)
    assert any(
        len(set(moved.replica[requests.session_id == s])) > 1
        for s in np.unique(requests.session_id)
    )


def test_without_sessions_the_router_says_so():
    result = simulate(Fleet((pool(replicas=2),), routing="session-affinity"), trace(20, 10.0, 1))
    assert any("no sessions" in note for note in result.notes)


def test_a_mixed_pool_keeps_what_the_decode_pool_has_no_seat_for():
    requests = trace(60, 200.0, 2, max_output=50)
    mixed = pool(name="mixed", replicas=2)
    small = pool(name="decode", role="decode", max_num_seqs=1, max_num_batched_tokens=64)
    result = simulate(Fleet((mixed, small), KvLink(1e-4, 1e-6)), requests)
    assert not np.isnan(result.finish_s).any()
    moved = result.replica == 2
    assert 0 < moved.sum() < len(requests)
    spans = sorted(zip(result.first_token_s[moved], result.finish_s[moved], strict=True))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def overlapping(result, replica):
    own = result.replica == replica
    starts, ends = np.sort(result.admitted_s[own]), np.sort(result.first_token_s[own])
    return max(
        int((starts <= t).sum()) - int((ends <= t).sum()) for t in result.admitted_s[own]
    )  # fmt: skip


@pytest.mark.parametrize(
    "gate", ["gate-and-route", "gate-and-route-capped", "gate-and-route-credit"]
)
def test_a_gate_gives_a_replica_one_prefill_at_a_time(gate):
    requests = trace(120, 120.0, 4)
    free = simulate(Fleet((pool(replicas=3),)), requests)
    gated = simulate(Fleet((pool(replicas=3),), admission=gate), requests)
    assert max(overlapping(free, r) for r in range(3)) > 1
    assert max(overlapping(gated, r) for r in range(3)) == 1
    assert not np.isnan(gated.finish_s).any()


def two_classes(rate_rps, n=2400):
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, n).astype(np.int16)
    return Trace(
        np.cumsum(rng.exponential(1 / rate_rps, n)),
        np.where(kind == 0, 30, 240).astype(np.int32),
        np.where(kind == 0, 60, 20).astype(np.int32),
        class_id=kind,
        class_names=("talk", "read"),
    )


def test_a_capped_gate_lets_the_better_paying_class_through_first():
    requests = two_classes(400.0)
    fleet = {"kv_blocks": 400, "replicas": 2}
    result = simulate(Fleet((pool(**fleet),), admission="gate-and-route-capped"), requests)
    assert any("leaves out 100% of class talk" in note for note in result.notes)
    plain = simulate(Fleet((pool(**fleet),)), requests)
    read = requests.class_id == 1
    assert np.median(result.ttft_s[read]) < 0.7 * np.median(plain.ttft_s[read])
    assert np.median(result.ttft_s[read]) < 0.1 * np.median(result.ttft_s[~read])
    assert not np.isnan(result.finish_s).any()


def test_an_unloaded_fleet_is_not_slowed_by_staggering():
    requests = trace(40, 1.0, 5, max_output=20)
    fleet = {"replicas": 2, "max_num_batched_tokens": 1000}
    plain = simulate(Fleet((pool(**fleet),), routing="least-tokens"), requests)
    held = simulate(Fleet((pool(**fleet),), admission="staggered"), requests)
    np.testing.assert_allclose(held.ttft_s, plain.ttft_s, rtol=1e-9)


def test_staggering_shortens_the_wait_for_long_passes():
    slow = timing(scale=20.0)
    prefill = pool(
        name="p", role="prefill", replicas=4, data_parallel=4, timing=slow,
        max_num_batched_tokens=256,
    )  # fmt: skip
    decode = pool(name="d", role="decode", replicas=2, timing=timing(), max_num_seqs=64)
    requests = trace(900, 140.0, 6, max_prompt=150, max_output=10)
    at_once = simulate(Fleet((prefill, decode), routing="round-robin"), requests)
    held = simulate(Fleet((prefill, decode), admission="staggered"), requests)
    assert held.queue_s.mean() < 0.6 * at_once.queue_s.mean()
    assert held.ttft_s.mean() < at_once.ttft_s.mean()


def test_released_requests_too_often_passed_over_are_rejected():
    requests = trace(300, 2000.0, 8, max_prompt=200, max_output=5)
    fleet = Fleet((pool(max_num_batched_tokens=256),), admission="staggered+age_limit=1")
    result = simulate(fleet, requests)
    assert 0 < result.rejected.sum() < 300
    patient = simulate(Fleet((pool(max_num_batched_tokens=256),), admission="staggered"), requests)
    assert not patient.rejected.any()


def test_a_router_leaves_overloaded_replicas_out():
    requests = trace(200, 100.0, 9)
    result = simulate(Fleet((pool(replicas=6),), routing="iqr-lexicographic"), requests)
    counts = np.bincount(result.replica, minlength=6)
    assert counts.min() > 0.6 * counts.mean()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"routing": "lest-tokens"},
            "unknown routing policy 'lest-tokens'; did you mean least-tokens",
        ),
        ({"admission": "gate"}, "unknown admission policy 'gate'"),
        ({"routing": "random+slack=1"}, "random has no parameter 'slack'"),
        ({"routing": "prefix-affinity+factor=0.5"}, "factor must be a number from 1 to"),
        ({"admission": "staggered+window_passes=1.5"}, "must be a whole number"),
    ],
)
def test_what_is_wrong_with_a_policy_is_named(changes, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        Fleet((pool(),), **changes)


@pytest.mark.parametrize("admission", ["staggered", "gate-and-route"])
def test_held_requests_need_plain_queues(admission):
    with pytest.raises(InputError, match="choose vllm or prefill-first"):
        Fleet((pool(batching="sjf"),), admission=admission)


@pytest.mark.parametrize("batching", ["static", "nested-wait"])
def test_batches_kept_together_cannot_be_handed_over(batching):
    with pytest.raises(InputError, match="cannot hand requests to a decode pool"):
        Fleet((pool(batching=batching), pool(name="d", role="decode", max_num_batched_tokens=64)))
