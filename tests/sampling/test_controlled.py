"""Weights, choices, exact chains and the completions loop of controlled decoding."""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product

import numpy as np
import pytest

from gpusched.domain.document import validate
from gpusched.errors import InputError
from gpusched.sampling.controlled.choice import choose
from gpusched.sampling.controlled.completions import CompletionsEndpoint, controlled_completion
from gpusched.sampling.controlled.markov import (
    MarkovModel,
    decode,
    sample_paths,
    soft_optimal,
    soup,
)
from gpusched.sampling.controlled.strategy import ControlledDecoding
from gpusched.sampling.controlled.weights import published_steps, robust_weights
from gpusched.sampling.endpoint import EndpointError

WORKED = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 1.5]])


def settings(g=2, **given):
    return ControlledDecoding(objectives=tuple(f"o{i}" for i in range(g)), **given)


# ---- weights and choices


def test_published_steps_read_strength_the_other_way():
    few = [published_steps(WORKED, t)[0] for t in (0.1, 10.0)]
    exact = [robust_weights(WORKED, t).weights[0] for t in (0.1, 10.0)]
    assert few == pytest.approx([0.488, 0.0], abs=2e-3)
    assert exact == pytest.approx([0.0, 0.4204], abs=1e-4)


def test_published_steps_prove_how_far_off_they_are():
    found = robust_weights(WORKED, 1.0, paper_iterations=10)
    best = robust_weights(WORKED, 1.0)
    assert found.gap == pytest.approx(found.value - best.value, abs=1e-9)
    assert found.gap > 0


def test_smoothing_moves_weights_to_uniform():
    w = [robust_weights(WORKED, 0.1, smoothing=t).weights[0] for t in (0.0, 0.01, 0.1, 1.0, 100.0)]
    assert (np.diff(w) > 0).all()
    assert w[-1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "index"),
    [
        ({"strength": 0.1}, 2), ({"strength": 1.0}, 1), ({"rule": "maximin"}, 1),
        ({"rule": "fixed"}, 0), ({"rule": "fixed", "weights": {"o1": 3.0}}, 2),
    ],
)  # fmt: skip
def test_choices(given, index):
    assert choose(WORKED, settings(**given)).index == index


def test_choice_of_a_batch_and_its_degenerate_cases():
    rng = np.random.default_rng(0)
    v = rng.normal(size=(50, 6, 3))
    whole = choose(v, settings(3))
    for i in (0, 17, 49):
        assert whole.index[i] == choose(v[i], settings(3)).index
    assert choose(np.full((4, 2), 0.7), settings()).index == 0
    assert choose([[1.0, 2.0]], settings()).index == 0
    one = choose([[1.0], [3.0]], settings(1))
    assert one.index == 1
    assert one.weights == pytest.approx([1.0])


def test_calibration_takes_scales_out():
    v = np.random.default_rng(0).normal(size=(20, 6, 2))
    known = {"o0": (3.0, 1000.0), "o1": (-1.0, 0.1)}
    scaled = v * [1000.0, 0.1] + [3.0, -1.0]
    found = choose(scaled, settings(calibration=known))
    plain = choose(v, settings())
    assert (found.index == plain.index).all()
    assert found.weights == pytest.approx(plain.weights, abs=1e-4)
    assert (choose(scaled, settings()).index != plain.index).any()


def test_draws_follow_the_mix():
    v = np.broadcast_to(WORKED, (20_000, 3, 2))
    mix = robust_weights(WORKED, 1.0).mix
    found = choose(
        v, settings(rule="robust-sample", strength=1.0), rng=np.random.default_rng(1)
    ).index
    share = np.bincount(found, minlength=3) / len(found)
    assert np.abs(share - mix).max() < 4 * np.sqrt(0.25 / len(found))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[1.0, np.nan]], "values: candidate 0, objective 1: must be finite, got nan"),
        (np.zeros((0, 2)), "no candidates"),
        ([[1.0, 2.0, 3.0]], r"values: must have shape \(candidates, 2\), got \(1, 3\)"),
        ([["x", "y"]], "values: not an array of numbers"),
    ],
)
def test_bad_values(values, words):
    with pytest.raises(InputError, match=words):
        choose(values, settings())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"objectives": []}, "objectives"),
        ({"objectives": ["a", "a"]}, "each name once"),
        ({"objectives": ["a"], "weights": {"a": 1}}, "only the rule 'fixed'"),
        ({"objectives": ["a"], "rule": "fixed", "weights": {"b": 1}}, "no objective 'b'"),
        ({"objectives": ["a"], "rule": "fixed", "weights": {"a": 0}}, "must be positive"),
        ({"objectives": ["a"], "strength": 0}, "strength"),
        ({"objectives": ["a"], "calibration": {"b": [0, 1]}}, "calibration: needs a mean"),
        ({"objectives": ["a"], "calibration": {"a": [0, 0]}}, "calibration"),
        ({"objectives": ["a"], "candidats": 4}, "did you mean candidates"),
        ({"objectives": ["a"], "rule": "robus"}, "did you mean robust"),
        ({"objectives": ["a"], "paper_iterations": 10, "smoothing": 1}, "not with smoothing"),
    ],
)
def test_bad_settings(given, words):
    with pytest.raises(InputError, match=words):
        validate(ControlledDecoding, given, "gpusched")


# ---- exact chains


def chain(seed, tokens=5, g=2):
    rng = np.random.default_rng(seed)
    return MarkovModel(rng.dirichlet(np.full(tokens, 0.7), tokens), rng.normal(size=(g, tokens)))


def test_values_equal_enumeration():
    model = chain(0, 3, 2)
    by_hand = np.zeros((3, 2))
    for a, path in product(range(3), product(range(3), repeat=4)):
        steps = [a, *path]
        p = np.prod([model.transition[i, j] for i, j in zip(steps, path, strict=False)])
        by_hand[a] += p * model.earned(np.array(path))
    assert model.values(4)[4] == pytest.approx(by_hand)


def test_values_equal_the_mean_of_samples():
    model = chain(1)
    rng = np.random.default_rng(0)
    paths = model.sample(np.full(40_000, 2), 6, rng)
    earned = model.earned(paths)
    error = earned.std(0) / np.sqrt(len(earned))
    assert (np.abs(earned.mean(0) - model.values(6)[6, 2]) < 4 * error).all()


def test_many_candidates_approach_all_blocks():
    """Weights over K samples of a block approach those over all blocks, by probability."""
    draws = np.random.default_rng(2)
    first = draws.normal(size=4)
    model = MarkovModel(draws.dirichlet(np.ones(4), 4), np.array([first, -first]))
    level = model.values(6)[6, 0]
    blocks = np.array(list(product(range(4), repeat=2)))
    p = model.transition[0, blocks[:, 0]] * model.transition[blocks[:, 0], blocks[:, 1]]

    def values(b):
        return model.earned(b) + model.values(4)[4][b[..., -1]] - level

    limit = robust_weights(
        np.repeat(values(blocks), np.round(p * 20_000).astype(int), 0), 1.0
    ).weights
    rng = np.random.default_rng(0)
    error = []
    for k in (8, 64, 512):
        s = model.sample(np.zeros((200, k), np.int64), 2, rng)
        error.append(np.abs(robust_weights(values(s), 1.0).weights - limit).mean())
    assert error[0] > error[1] > error[2]
    assert error[2] < 0.1
    assert 0.05 < limit[0] < 0.95


def test_decoding_lifts_the_worst_objective():
    """On rewards that conflict; and every rule is the same where they do not."""
    prompts = np.zeros(400, np.int64)
    better = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        first = rng.normal(size=6)
        p = rng.dirichlet(np.ones(6), 6)
        conflict = MarkovModel(p, np.array([first, -first + 0.5 * rng.normal(size=6)]))
        worst = {}
        for name, given in (
            ("reference", {"candidates": 1}), ("uniform", {"rule": "fixed"}),
            ("single", {"rule": "fixed", "weights": {"o0": 1.0}}), ("robust", {}),
        ):  # fmt: skip
            tokens, _ = decode(conflict, prompts, 12, settings(block_tokens=3, **given), rng)
            worst[name] = conflict.earned(tokens).min(1).mean()
        assert worst["robust"] > worst["single"]
        assert worst["robust"] > worst["reference"]
        better.append(worst["robust"] - worst["uniform"])
        same = MarkovModel(p, np.array([first, first]))
        outcomes = [
            decode(
                same, prompts, 12, settings(block_tokens=3, rule=rule), np.random.default_rng(7)
            )[0]
            for rule in ("robust", "fixed", "maximin")
        ]
        assert (outcomes[0] == outcomes[1]).all()
        assert (outcomes[0] == outcomes[2]).all()
    assert np.mean(better) > 0


def test_soft_optimal_policies():
    model = chain(3)
    weights = np.array([0.3, 0.7])
    policy = soft_optimal(model, 4, weights, 2.0)
    assert policy.sum(-1) == pytest.approx(np.ones((4, 5)))
    # its path probabilities are those of the reference, tilted by the whole reward
    paths = np.array(list(product(range(5), repeat=4)))
    full = np.hstack([np.zeros((len(paths), 1), int), paths])
    under, reference = np.ones(len(paths)), np.ones(len(paths))
    for t in range(4):
        under *= policy[t, full[:, t], full[:, t + 1]]
        reference *= model.transition[full[:, t], full[:, t + 1]]
    tilted = reference * np.exp(2.0 * model.earned(paths) @ weights)
    assert under == pytest.approx(tilted / tilted.sum())
    assert soup(model, 4, 0.0) == pytest.approx(np.broadcast_to(model.transition, (4, 5, 5)))
    drawn = sample_paths(policy, np.zeros(5000, np.int64), np.random.default_rng(0))
    assert model.earned(drawn).mean(0) == pytest.approx(under @ model.earned(paths), abs=0.15)


def test_bad_chains():
    with pytest.raises(InputError, match="shapes"):
        MarkovModel(np.ones((2, 3)), np.ones((1, 2)))
    with pytest.raises(InputError, match="probabilities"):
        MarkovModel(np.ones((2, 2)), np.ones((1, 2)))


# ---- completions endpoint


class StubServer:
    """Continues text with letters of its own model; may not know ``n``, or fail."""

    def __init__(self, many="yes", end=0.0, status=200, body=None):
        self.many, self.end, self.status, self.body = many, end, status, body
        self.asked = []
        self.lock = threading.Lock()

    def answer(self, asked):
        with self.lock:
            self.asked.append(asked)
        if self.body is not None:
            return self.status, self.body
        if self.many == "refuses" and asked["n"] > 1:
            return 400, b'{"error": "n must be 1"}'
        count = 1 if self.many == "ignores" else asked["n"]
        rng = np.random.default_rng([asked["seed"], len(asked["prompt"])])
        choices = []
        for i in range(count):
            length = asked["max_tokens"]
            ended = rng.random() < self.end
            text = "".join(rng.choice(list("abc"), length - 1 if ended else length))
            choices.append(
                {"index": i, "text": text, "finish_reason": "stop" if ended else "length"}
            )
        usage = {
            "prompt_tokens": len(asked["prompt"]),
            "completion_tokens": sum(len(c["text"]) for c in choices),
        }
        return self.status, json.dumps({"choices": choices, "usage": usage}).encode()


@contextmanager
def serving(stub):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = stub.answer(asked)
            self.send_response(status if self.path == "/v1/completions" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def letters(prompt, answers, finished):
    return [[a.count("a"), a.count("b")] for a in answers]


def run(stub, given=None, values=letters, **endpoint):
    with serving(stub) as url:
        server = CompletionsEndpoint(url, "stub", **endpoint)
        chosen = settings(**({"block_tokens": 4, "max_tokens": 18} | (given or {})))
        return asyncio.run(controlled_completion(server, "prompt: ", values, chosen))


@pytest.mark.parametrize("many", ["yes", "ignores", "refuses"])
def test_completions(many):
    stub = StubServer(many)
    found = run(stub)
    assert len(found.text) == 18
    assert not found.finished
    assert [len(b.text) for b in found.blocks] == [4, 4, 4, 4, 2]
    assert "".join(b.text for b in found.blocks) == found.text
    assert found.completion_tokens == 8 * 18
    assert found.requests == {"yes": 5, "ignores": 40, "refuses": 40}[many]
    # each block goes on from what was kept
    prefixes = {asked["prompt"] for asked in stub.asked}
    assert prefixes == {"prompt: " + found.text[:i] for i in (0, 4, 8, 12, 16)}
    assert found.blocks[-1].values == pytest.approx([found.text.count("a"), found.text.count("b")])
    assert all(b.gap <= 1e-6 for b in found.blocks)


def test_completions_are_good_on_the_worst_objective_and_repeatable():
    robust = run(StubServer(), {"candidates": 16})
    assert robust.text == run(StubServer(), {"candidates": 16}).text
    single = run(StubServer(), {"candidates": 16, "rule": "fixed", "weights": {"o0": 1.0}})
    worst = [min(x.text.count("a"), x.text.count("b")) for x in (robust, single)]
    assert worst[0] > worst[1]


def test_completions_end_and_keep_a_finished_branch():
    async def values(prompt, answers, finished):
        return [[float(f), float(f)] for f in finished]

    heard = []
    with serving(StubServer(end=0.5)) as url:
        server = CompletionsEndpoint(url, "stub", api_key="key")
        found = asyncio.run(
            controlled_completion(
                server, "p", values, settings(block_tokens=4, max_tokens=40), on_block=heard.append
            )
        )
    assert found.finished
    assert len(found.text) == 3
    assert heard == found.blocks


@pytest.mark.parametrize(
    ("stub", "words"),
    [
        (StubServer(status=500, body=b"boom"), "the server answered 500: boom"),
        (StubServer(body=b"<html>"), "not JSON"),
        (StubServer(body=b'{"id": 1}'), "no choices"),
        (StubServer(body=b'{"choices": []}'), "no candidates"),
    ],
)
def test_servers_that_fail(stub, words):
    with pytest.raises(EndpointError, match=words):
        run(stub)


def test_no_server():
    server = CompletionsEndpoint("http://127.0.0.1:9/v1", "stub")
    with pytest.raises(EndpointError, match="no answer from the server"):
        asyncio.run(controlled_completion(server, "p", letters, settings()))


def test_values_of_a_wrong_shape():
    with pytest.raises(InputError, match="values: must have shape"):
        run(StubServer(), values=lambda p, a, f: [[1.0]] * len(a))
