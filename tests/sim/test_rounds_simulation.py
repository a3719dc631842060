"""Rounds of sessions on prefill and decode pools: what must hold of them, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from fleets import timing, trace
from test_rounds_kernel import sessions

from gpusched.errors import InputError
from gpusched.policies.routing.adaptive import BRANCHES, LOCAL
from gpusched.sim.fleet import Fleet, KvLink, Pool
from gpusched.sim.result import summarize
from gpusched.sim.simulate import simulate


def fleet(routing, *, kv_blocks=4000, prefill=2, decode=2, link=KvLink(1e-4, 1e-6), **changes):  # noqa: B008
    common = {"timing": timing(), "max_num_batched_tokens": 256, "max_num_seqs": 64}
    return Fleet(
        (
            Pool(
                "prompts", kv_blocks=4000, role="prefill", replicas=prefill, **{**common, **changes}
            ),
            Pool("answers", kv_blocks=kv_blocks, role="decode", replicas=decode, **common),
        ),
        link,
        routing=routing,
    )


AGENTS = sessions(40, 6, 4.0, 1, increment=200, output=40, think_s=0.5, least_output=2)
INCREMENTAL = AGENTS.round > 0
LENIENT = "ampd+ttft_s=100+itl_s=100"


def computed_tokens(result):
    return sum(pool.prompt_tokens for pool in result.pools)


def test_nothing_of_a_history_is_computed_again():
    for routing in ("ampd", "local-prefill", "remote-prefill"):
        result = simulate(fleet(routing), AGENTS)
        history = result.rounds.history_tokens
        assert (history[INCREMENTAL] > 0).all()
        assert not history[~INCREMENTAL].any()
        assert computed_tokens(result) == (AGENTS.prompt_tokens - history).sum()
        assert result.rounds.evictions == 0
        np.testing.assert_array_equal(result.cached_tokens, history)
    plain = simulate(fleet("least-tokens"), AGENTS)
    assert computed_tokens(plain) == AGENTS.prompt_tokens.sum()
    assert plain.rounds is None
    assert plain.local_prefill_share is None


def test_history_is_all_of_the_context_but_the_last_token():
    result = simulate(fleet("local-prefill", decode=1), AGENTS)
    order = np.lexsort((AGENTS.round, AGENTS.session_id))
    context = AGENTS.prompt_tokens + AGENTS.output_tokens - 1
    after = order[1:][AGENTS.round[order[1:]] > 0]
    before = order[:-1][AGENTS.round[order[1:]] > 0]
    np.testing.assert_array_equal(result.rounds.history_tokens[after], context[before])


def test_shipping_for_ever_keeps_every_increment_local():
    result = simulate(fleet(LENIENT, link=KvLink(1e6, 0.0)), AGENTS)
    assert result.local_prefill_share == 1.0
    assert (result.rounds.branch == LOCAL).all()


def test_an_itl_bound_of_zero_sends_every_prefill_away():
    result = simulate(fleet("ampd+ttft_s=100+itl_s=0"), AGENTS)
    assert result.local_prefill_share == 0.0
    away = simulate(fleet("remote-prefill"), AGENTS)
    np.testing.assert_array_equal(result.finish_s, away.finish_s)


def test_single_rounds_sent_away_are_plain_disaggregation():
    single = trace(80, 20.0, 3)
    rounds = simulate(fleet("remote-prefill", prefill=1, decode=1), single)
    plain = simulate(fleet("least-tokens", prefill=1, decode=1), single)
    np.testing.assert_allclose(rounds.finish_s, plain.finish_s, rtol=1e-12)
    np.testing.assert_allclose(rounds.first_token_s, plain.first_token_s, rtol=1e-12)
    assert "no request of the trace follows an answer" in rounds.notes[0]


def test_the_adaptive_rule_takes_both_ways_under_load():
    busy = sessions(200, 6, 12.0, 2, increment=200, output=40, think_s=0.5)
    result = simulate(fleet("ampd+ttft_s=0.5+itl_s=0.03", prefill=1), busy)
    assert 0.05 < result.local_prefill_share < 0.95
    values = summarize(result)["rounds"]
    assert values["local_prefill_share"] == result.local_prefill_share
    assert sum(values["branches"].values()) == len(busy)
    assert list(values["branches"]) == list(BRANCHES[1:])


def test_sessions_are_bound_where_memory_use_is_least():
    result = simulate(fleet("local-prefill"), AGENTS)
    of_session = {}
    for replica, session in zip(result.replica, AGENTS.session_id, strict=True):
        assert of_session.setdefault(session, replica) == replica
    counts = np.bincount(list(of_session.values()))
    assert counts[2:].min() > 0.3 * len(of_session)


def test_histories_are_evicted_when_blocks_run_out_and_computed_anew():
    # small engines: a handful of sessions fill them
    result = simulate(fleet("local-prefill", kv_blocks=100), AGENTS)
    log = result.rounds
    assert log.evictions > 0
    assert log.evicted.sum() > 0
    assert not log.evicted[~INCREMENTAL].any()
    assert (log.history_tokens[INCREMENTAL] == 0).sum() <= log.evicted.sum()
    assert result.pools[1].kv_peak <= 1.0
    ample = simulate(fleet("local-prefill"), AGENTS)
    assert computed_tokens(result) > computed_tokens(ample)
    values = summarize(result)["rounds"]
    assert values["histories_missed"] == log.evicted.sum()


def test_a_rewritten_prompt_drops_the_history():
    rewritten = replace(AGENTS, prompt_tokens=np.ones(len(AGENTS), np.int32))
    result = simulate(fleet("local-prefill"), rewritten)
    assert not result.rounds.history_tokens.any()
    assert not result.rounds.evicted.any()


def test_a_window_of_one_is_first_come_first_served():
    burst = trace(60, 200.0, 5, max_prompt=400)
    fcfs = simulate(fleet("least-tokens"), burst)
    one = simulate(fleet("least-tokens", batching="on-time+window=1"), burst)
    np.testing.assert_array_equal(fcfs.finish_s, one.finish_s)
    three = simulate(fleet("least-tokens", batching="on-time+ttft_s=0.3"), burst)
    assert (three.first_token_s != fcfs.first_token_s).any()
    assert (three.ttft_s <= 0.3).sum() >= (fcfs.ttft_s <= 0.3).sum()


def test_what_does_not_go_together_is_refused():
    pools = fleet("ampd").pools
    mixed = (Pool("engines", timing(), kv_blocks=100),)
    with pytest.raises(InputError, match=r"routing: ampd places .* has mixed ones"):
        Fleet(mixed, routing="ampd")
    with pytest.raises(InputError, match="decode_routing: ampd does not go with routing"):
        Fleet(pools, routing="least-tokens", decode_routing="ampd")
    with pytest.raises(InputError, match="admission: staggered does not go with routing ampd"):
        Fleet(pools, routing="ampd", admission="staggered")
    with pytest.raises(InputError, match="data_parallel_size to 1"):
        Fleet((pools[0], replace(pools[1], data_parallel=2)), routing="ampd")
    with pytest.raises(InputError, match=r"pool engines: on-time batching orders prompts on pre"):
        replace(mixed[0], batching="on-time")
    with pytest.raises(InputError, match="on-time batching does not go with data-parallel units"):
        Fleet((replace(pools[0], batching="on-time"), replace(pools[1], data_parallel=2)))
