"""The command against a simulated engine behind HTTP, in real time."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines_made_up import made_up
from typer.testing import CliRunner

from gpusched.cli.main import app
from gpusched.engines.simulated import IterationEngine, SimulatedEngine
from gpusched.timing.measured import MeasuredIteration, read_measured

SLOW = MeasuredIteration(
    decode_batch=(1, 4), decode_s=(0.02, 0.026), tokens=(9, 1024), tokens_s=(0.024, 0.2),
    context_s=2e-6,
)  # fmt: skip
"""Iterations long enough for the timers of a busy machine."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    core = IterationEngine(
        made_up(iteration=SLOW).compile(2048, 64), max_num_seqs=4, max_num_batched_tokens=512
    )
    loop = asyncio.new_event_loop()
    engine = SimulatedEngine(core, max_model_len=512)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(engine.start(), loop).result(10)
    yield engine.url
    asyncio.run_coroutine_threadsafe(engine.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_calibrate_writes_a_timing_file(url: str, tmp_path: Path) -> None:
    file = tmp_path / "timing.toml"
    arguments = ["calibrate", url, "-o", str(file), "--budget-s", "5", "--no-validate", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    document = json.loads(result.stdout)
    measured = read_measured(file)
    assert measured is not None
    assert measured.max_num_seqs == 4
    assert measured.kv_tokens == 4096 * 16
    assert document["measured"]["iteration"]["decode_batch"][0] == 1
    assert document["rows"] == measured.error.rows
    # another thread of this very process keeps the engine's time: no more than roughly
    assert measured.iteration.decode_s[0] == pytest.approx(0.02, rel=0.25)


def test_validation_is_shown(url: str) -> None:
    arguments = [
        "calibrate", url, "--budget-s", "5", "--max-num-seqs", "4", "--max-num-batched-tokens",
        "512", "--load", "0.2",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "traffic not fitted to" in result.stdout
    assert "TTFT p90" in result.stdout


def test_bad_output_folder_is_told_before_measuring(url: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", url, "-o", str(tmp_path / "no" / "t.toml")])
    assert "no folder" in str(result.exception)
