from pathlib import Path

import numpy as np
import pytest

from gpusched.errors import InputError
from gpusched.traces.rates import read_rates, trace_from_rates


def table(path: Path, rows: str, head: str = "t_s,rate_rps") -> Path:
    path.write_text(f"{head}\n{rows}\n")
    return path


def test_requests_follow_the_rates(tmp_path: Path) -> None:
    rates = 2.0 + np.sin(2 * np.pi * np.arange(288) / 144)
    path = table(tmp_path / "r.csv", "\n".join(f"{600 * k},{rate}" for k, rate in enumerate(rates)))
    trace = trace_from_rates(path, profile="chat", seed=3)
    counts = np.bincount((trace.arrival_s // 600).astype(int), minlength=288)
    assert (np.diff(trace.arrival_s) >= 0).all()
    z = (counts - 600 * rates) / np.sqrt(600 * rates)
    assert abs(z.mean()) < 0.3
    assert z.std() == pytest.approx(1.0, abs=0.2)
    turned = trace_from_rates(path, profile="chat", seed=3, shift_s=6 * 3600.0)
    shifted = np.bincount((turned.arrival_s // 600).astype(int), minlength=288)
    assert np.corrcoef(shifted, np.roll(rates, 36))[0, 1] > 0.95


def test_gaps_are_filled_and_said(tmp_path: Path) -> None:
    rows = "\n".join(f"{600 * k},{1 + (k % 144 == 20)}" for k in range(288) if not 150 <= k < 180)
    trace = trace_from_rates(table(tmp_path / "r.csv", rows))
    assert any("30 of 288" in note for note in trace.notes)
    counts = np.bincount((trace.arrival_s // 600).astype(int), minlength=288)
    assert counts[164] > 900


def test_bad_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rate_rps"):
        read_rates(table(tmp_path / "a.csv", "0,1", "t_s,rate"))
    with pytest.raises(InputError, match=r"row 2.*0 or more"):
        read_rates(table(tmp_path / "b.csv", "0,1\n600,-2"))
    with pytest.raises(InputError, match="evenly"):
        read_rates(table(tmp_path / "c.csv", "0,1\n600,2\n1000,1"))
    with pytest.raises(InputError, match="two windows"):
        read_rates(table(tmp_path / "d.csv", "0,1"))
    many = table(tmp_path / "e.csv", "0,1,a\n0,2,b\n600,1,a", "t_s,rate_rps,model")
    with pytest.raises(InputError, match="say which"):
        read_rates(many)
    with pytest.raises(InputError, match=r"did you mean|choose one"):
        read_rates(many, "c")


def test_production_rates(shared: Path) -> None:
    folder = shared / "traces"
    trace = trace_from_rates(
        folder / "servegen_client_rates.parquet", group="m-small",
        lengths=folder / "servegen_lengths.parquet", rate_scale=1e-4,
    )  # fmt: skip
    assert trace.arrival_s[-1] > 13.9 * 86_400
    assert 500 < trace.prompt_tokens.mean() < 900
    assert 50 < trace.output_tokens.mean() < 100
    assert any("no lengths" in note for note in trace.notes)
