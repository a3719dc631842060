"""Policies of one's own: ten lines in a file, and what can be wrong with them."""

from types import SimpleNamespace

import numpy as np
import pytest
from numba import njit

from gpusched.errors import InputError
from gpusched.policies import custom
from gpusched.policies.batching.discipline import discipline
from gpusched.policies.custom import split
from gpusched.policies.views import Engine, Request
from gpusched.sim import kernel
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Trace

TEN_LINES = '''
"""Short prompts first, but nobody waits for ever."""

PATIENCE_TOKENS_PER_S = 100.0


def short_prompts_first(request, engine, worth=PATIENCE_TOKENS_PER_S):
    """Short prompts first; a second of waiting is worth some prompt tokens."""
    if engine.running < engine.max_running // 2:
        return request.arrival_s
    return request.prompt_tokens + worth * request.arrival_s
'''
ONES, ZEROS = np.ones(4097), np.zeros(4097)
TIMING = CompiledTiming(ONES, ONES, ZEROS, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)


def backlog(n=30, seed=0):
    rng = np.random.default_rng(seed)
    prompt, output = rng.integers(1, 50, (2, n)).astype(np.int32)
    return Trace(np.zeros(n), prompt, output)


def serve(batching, trace, *, max_num_seqs=1, kv_blocks=10_000):
    pool = Pool(
        "e", TIMING, kv_blocks, batching=batching, block_tokens=1, max_num_seqs=max_num_seqs
    )
    return simulate(Fleet((pool,)), trace)


@pytest.fixture
def policy(tmp_path):
    def write(source, name="f"):
        path = tmp_path / "my.py"
        path.write_text(source)
        return f"{path}:{name}"

    return write


def test_ten_lines_are_a_policy(policy):
    name = policy(TEN_LINES, "short_prompts_first")
    trace = backlog()
    result = serve(name, trace)
    order = np.argsort(result.admitted_s)
    assert (np.diff(trace.prompt_tokens[order]) >= 0).all()
    assert discipline(name).summary.startswith("Short prompts first; a second")
    assert str(discipline(name)) == name


def test_parameters_are_set_from_the_text(policy):
    name = policy(
        "def f(request, sign=1.0, offset=0):\n    return sign * request.prompt_tokens + offset"
    )
    trace = backlog()
    order = np.argsort(serve(f"{name}+sign=-1", trace).admitted_s)
    assert (np.diff(trace.prompt_tokens[order]) <= 0).all()
    assert discipline(f"{name}+sign=-1+offset=3").rank.parameters == (-1.0, 3.0)


def test_equal_ranks_are_served_in_order_of_arrival(policy):
    result = serve(policy("def f(request):\n    return 0"), backlog())
    assert (np.diff(result.admitted_s) >= 0).all()


def test_a_rank_equals_the_built_in_it_copies(policy):
    source = "def f(request):\n    left = request.predicted_tokens - request.produced_tokens\n"
    source += "    return max(left, 1) * 2.0**22 + request.prompt_tokens"
    name = policy(source)
    trace = backlog(n=80, seed=2)
    pool = {"max_num_seqs": 6, "kv_blocks": 220}
    ours = serve(f"{name}+predictor=noisy:0.5", trace, **pool)
    theirs = serve("sjf+predictor=noisy:0.5", trace, **pool)
    assert ours.preemptions.sum() > 0
    np.testing.assert_array_equal(ours.finish_s, theirs.finish_s)


def test_a_rank_and_a_gate(policy):
    source = """
from gpusched.policies.custom import Batching


def longest(request):
    return -request.prompt_tokens


def at_most(engine, most=2):
    return engine.running < most


both = Batching(rank=longest, admits=at_most, predictor="oracle")
gate = Batching(admits=at_most)
"""
    trace = backlog()
    result = serve(policy(source, "both"), trace, max_num_seqs=8)
    assert (np.diff(trace.prompt_tokens[np.argsort(result.admitted_s, kind="stable")]) <= 0).all()
    assert most_running(result) == 2
    assert discipline(policy(source, "both")).predictor == "oracle"
    wider = serve(policy(source, "gate") + "+most=5", trace, max_num_seqs=8)
    assert most_running(wider) == 5
    assert (np.diff(wider.admitted_s) >= 0).all()


def most_running(result):
    events = [(t, 1) for t in result.admitted_s] + [(t, -1) for t in result.finish_s]
    return max(np.cumsum([step for _, step in sorted(events)]))


def test_a_gate_of_memory_keeps_its_share_free(policy):
    source = """
from gpusched.policies.custom import Batching


def keep_free(request, engine, share=0.5):
    left = engine.free_tokens - request.prompt_tokens
    return engine.running == 0 or left >= share * engine.kv_tokens


careful = Batching(admits=keep_free)
"""
    trace = backlog(n=60, seed=3)
    pool = {"max_num_seqs": 16, "kv_blocks": 200}
    assert serve("vllm", trace, **pool).preemptions.sum() > 0
    assert serve(policy(source, "careful") + "+share=0.8", trace, **pool).preemptions.sum() == 0


def test_the_kernel_is_compiled_once_for_all_policies(policy):
    serve("vllm", backlog(n=3))
    for source in ("def f(request):\n    return request.prompt_tokens",
                   "def f(engine, a=1.0):\n    return a * engine.running"):  # fmt: skip
        serve(policy(source), backlog(n=3))
    assert len(kernel.run.signatures) == 1


def test_plain_python_gives_what_the_simulator_computes(policy):
    chosen = discipline(policy(TEN_LINES, "short_prompts_first")).rank
    request, engine = Request(3.0, 70, 2, 100, 0), Engine(10.0, 4, 16, 900, 1000)
    for view in (engine, engine._replace(running=12)):
        native = call_native(chosen.native, *request, *view, chosen.row())
        assert native == chosen.function(request, view, *chosen.parameters)


@njit
def call_native(native, *arguments):
    return native(*arguments)


def test_a_changed_file_is_read_again(policy):
    trace = backlog()
    up = serve(policy("def f(request):\n    return request.prompt_tokens"), trace)
    down = serve(policy("def f(request):\n    return -request.prompt_tokens "), trace)
    assert np.argmin(up.admitted_s) != np.argmin(down.admitted_s)


def test_a_function_already_compiled_by_its_author(policy):
    name = policy(
        "from numba import njit\n\n\n@njit\ndef f(request):\n    return request.prompt_tokens"
    )
    trace = backlog()
    order = np.argsort(serve(name, trace).admitted_s)
    assert (np.diff(trace.prompt_tokens[order]) >= 0).all()


def test_a_package_offers_a_policy(monkeypatch):
    def patient(request):
        """Latest first."""
        return -request.arrival_s

    def broken():
        raise ImportError("no module named lost")

    points = [
        SimpleNamespace(name="latest", load=lambda: patient),
        SimpleNamespace(name="broken", load=broken),
        SimpleNamespace(name="vllm", load=broken),
    ]
    groups = []
    monkeypatch.setattr(custom, "entry_points", lambda group: groups.append(group) or points)
    custom._offered.cache_clear()
    try:
        trace = Trace(np.arange(4.0), np.ones(4, np.int32), np.full(4, 9, np.int32))
        assert np.argsort(serve("latest", trace).admitted_s).tolist() == [0, 3, 2, 1]
        assert groups == ["gpusched.policies"]
        assert discipline("latest").summary == "Latest first."
        assert discipline("vllm").rank is None
        with pytest.raises(InputError, match="policy broken: ImportError: no module named lost"):
            discipline("broken")
    finally:
        monkeypatch.undo()
        custom._offered.cache_clear()


def test_a_folder_may_have_a_plus_in_its_name(tmp_path):
    folder = tmp_path / "c++"
    folder.mkdir()
    (folder / "my.py").write_text("def f(request, a=1.0):\n    return a")
    assert discipline(f"{folder}/my.py:f+a=2").rank.parameters == (2.0,)
    assert split("c++/my.py:f+a=2+b=3") == ("c++/my.py:f", ["a=2", "b=3"])
    assert split("mc-sf+a=2") == ("mc-sf", ["a=2"])


WRONG = {
    "a missing function": ("def g(request):\n    return 1.0", "f", "has no 'f'; it has g"),
    "no function at all": ("f = 3.0", "f", "a float, not a function"),
    "a class": ("class f:\n    pass", "f", "a type, not a function"),
    "a file that fails": ("import numpyy", "f", "ModuleNotFoundError: No module named 'numpyy'"),
    "a syntax error": ("def f(request)\n", "f", "SyntaxError"),
    "an unknown view": ("def f(request, fleet):\n    return 1.0", "f", "'fleet': a batching policy takes request and engine"),
    "parameters without default": ("def f(request, a):\n    return a", "f", "'a': a batching policy"),
    "a default that is no number": ("def f(request, a='x'):\n    return a", "f", "a must be a number by default, got 'x'"),
    "too many parameters": ("def f(request, a=1, b=1, c=1, d=1, e=1, g=1, h=1, i=1, j=1):\n    return a", "f", "at most 8"),
    "an unknown field": ("def f(request):\n    return request.output_tokens", "f", "cannot be compiled (line 2: Unknown attribute 'output_tokens'"),
    "what cannot be compiled": ("def f(request):\n    return open('x').read()", "f", "cannot be compiled"),
    "a string": ("def f(request):\n    return 'soon'", "f", "returns Literal[str](soon), where a number"),
    "nothing returned": ("def f(request):\n    request.prompt_tokens", "f", "returns none, where a number"),
    "nothing returned now and then": ("def f(request):\n    if request.prompt_tokens > 3:\n        return 1.0", "f", "where a number"),
    "an empty policy": ("from gpusched.policies.custom import Batching\nf = Batching()", "f", "needs a rank"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "name", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_file_is_named(policy, source, name, words):
    text = policy(source, name)
    with pytest.raises(InputError) as caught:
        discipline(text)
    assert words in str(caught.value)
    assert "my.py" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("+b=1", "has no parameter 'b'"),
        ("+a=much", "a must be a number, got 'much'"),
        ("+predictor=guess", "unknown length predictor"),
    ],
)
def test_what_is_wrong_with_parameters_is_named(policy, settings, words):
    with pytest.raises(InputError, match=words):
        discipline(policy("def f(request, a=1.0):\n    return a") + settings)


@pytest.mark.parametrize("path", ["nowhere/my.py", "~nobody0/my.py"])
def test_a_missing_file(path):
    with pytest.raises(InputError, match=f"no file {path}"):
        discipline(f"{path}:f")


AT_RUN_TIME = {
    "raises": (
        "def f(request):\n    return 1 / (request.prompt_tokens - 7)",
        r"my\.py:f raised ZeroDivisionError: .*for request 1 \(Request\(.*prompt_tokens=7",
    ),
    "gives nan": (
        "import math\n\n\ndef f(request):\n"
        "    return math.nan if request.prompt_tokens == 7 else 1.0",
        r"my\.py:f returned nan, which is no number, for request 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "words"), AT_RUN_TIME.values(), ids=AT_RUN_TIME)
def test_what_fails_at_run_time_names_policy_and_request(policy, source, words):
    trace = Trace(np.zeros(3), np.array([3, 7, 9], np.int32), np.array([5, 5, 5], np.int32))
    with pytest.raises(InputError, match=words):
        serve(policy(source), trace)


def test_a_gate_that_fails_late_names_the_request(policy):
    source = """
from gpusched.policies.custom import Batching


def f(request, engine):
    return 1 // (engine.running - 2) < 9


gate = Batching(admits=f)
"""
    with pytest.raises(InputError, match=r"my\.py:gate .* for request 2"):
        serve(policy(source, "gate"), backlog(), max_num_seqs=8)


@pytest.mark.parametrize("gate", ["False", "engine.running > 0", "request.prompt_tokens < 40"])
def test_a_gate_that_lets_nothing_start_is_told(policy, gate):
    source = f"""
from gpusched.policies.custom import Batching


def f(request, engine):
    return {gate}


gate = Batching(admits=f)
"""
    with pytest.raises(InputError, match=r"keeps .* waiting for ever.*when nothing runs"):
        serve(policy(source, "gate"), backlog())


def test_a_fleet_uses_one_own_policy(policy, tmp_path):
    one = policy("def f(request):\n    return 1.0\n\n\ndef g(request):\n    return 2.0")
    pools = tuple(Pool(n, TIMING, 100, batching=one[:-1] + n) for n in "fg")
    with pytest.raises(InputError, match="one policy of the user's own of each kind"):
        simulate(Fleet(pools), backlog())
