from gpusched.reproduce.sageserve import (
    Row,
    best,
    early_claim,
    ours_claims,
    saving_claims,
    siloed_claim,
    spec_for,
    waste_claim,
)


def row(policy: str, hours: float, *, knob: float = 1.0, fast: float = 0.97, wasted: float = 1.0):
    reached = {"fast": fast, "normal": 0.995, "batch": 1.0}
    short = max(0.95 - fast, 0.0)
    return Row(policy, knob, 0, hours, wasted, reached, short == 0, short, 50.0)


def draws(lt: float) -> dict[str, list[Row]]:
    return {
        "threshold": [row("threshold", 100, wasted=20), row("threshold", 110, wasted=20)],
        "lt-i": [row("lt-i", lt), row("lt-i", lt * 1.1)],
        "lt-u": [row("lt-u", lt + 4), row("lt-u", lt * 1.1 + 4)],
        "lt-ua": [row("lt-ua", lt + 1), row("lt-ua", lt * 1.1 + 1)],
        "siloed": [row("siloed", 140), row("siloed", 150)],
        "anticipating": [row("anticipating", 70), row("anticipating", 77)],
    }


def test_the_cheapest_that_meets_objectives_is_chosen_else_the_nearest() -> None:
    assert best([row("a", 5, fast=0.9), row("a", 9), row("a", 8)]).gpu_hours == 8
    assert best([row("a", 5, fast=0.8), row("a", 9, fast=0.93)]).gpu_hours == 9


def test_verdicts_follow_the_figures() -> None:
    lax = [row("threshold", 90, knob=0.7, fast=0.9)]
    assert [c.holds for c in saving_claims(draws(77), lax, "")] == [True, True, True, True]
    assert [c.holds for c in saving_claims(draws(95), lax, "")] == [False, False, False, False]
    assert siloed_claim(draws(77)).holds
    assert waste_claim(draws(77)).holds
    assert not ours_claims(draws(77))[0].holds
    assert ours_claims(draws(60))[0].holds
    plain = [row("lt-i", 70, fast=0.96), row("lt-ua", 70, fast=0.98)]
    assert early_claim(plain).holds
    assert not early_claim([row("lt-i", 70, fast=0.99), row("lt-ua", 70, fast=0.98)]).holds


def test_the_set_up_stands_without_data() -> None:
    assert spec_for(None, 2.0).demand.arrivals == "weekly"
