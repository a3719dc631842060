"""Real engines: a short calibration of each."""

import pytest

from gpusched.calibration.calibrate import Calibrated, Settings, calibrate
from gpusched.calibration.client import HttpEngine
from gpusched.calibration.facts import Facts, check_idle, find_facts
from gpusched.calibration.validate import validate
from gpusched.engines.cores import own_core
from gpusched.engines.process import EngineServer
from gpusched.errors import InputError
from parts import missing

LAYERS = ("--hf-overrides", '{"num_hidden_layers": 16}', "--load-format", "dummy")
ATTEMPTS = 4

pytestmark = [pytest.mark.engine, pytest.mark.quiet]


def quiet_calibration(engine: HttpEngine, facts: Facts, known: Settings) -> Calibrated:
    """Try again while other programs disturb the engine: it is right to refuse then."""
    for _ in range(ATTEMPTS - 1):
        try:
            return calibrate(engine, facts, known)
        except InputError as error:
            if not any(words in str(error) for words in ("vary by", "more time with --budget-s")):
                raise
    return calibrate(engine, facts, known)


def check(server: EngineServer, dialect: str, seqs: int, worker: str) -> None:
    engine = HttpEngine(server.url)
    try:
        facts = find_facts(engine)
        check_idle(engine)
        engine.find_habits()
        assert facts.engine == dialect
        known = Settings(seconds=25, max_num_seqs=seqs, max_num_batched_tokens=2048)
        with own_core(server.pid, worker):
            found = quiet_calibration(engine, facts, known)
            figures, _ = validate(engine, found.measured, seconds=4, load=0.3)
    finally:
        engine.close()
    m = found.measured
    assert m.max_num_seqs == seqs
    assert m.kv_tokens is not None
    assert all(1e-5 < s < 1.0 for s in m.iteration.decode_s)
    assert m.batch_s(1024.0) > m.batch_s(64.0)
    # loose: the machine may do other things as well
    assert all(0.2 < f.predicted / f.measured < 5 for f in figures)


def test_llama() -> None:
    from gpusched.engines.llama_server import start_llama

    try:
        server = start_llama(slots=4)
    except InputError as error:
        missing(error)
    with server:
        check(server, "llama.cpp", 4, "llama_child")


def test_vllm() -> None:
    from gpusched.engines.vllm_server import start_vllm

    try:
        server = start_vllm(max_num_seqs=4, extra=LAYERS)
    except InputError as error:
        missing(error)
    with server:
        check(server, "vllm", 4, "EngineCore")
