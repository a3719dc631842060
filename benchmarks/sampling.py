"""Time of per-answer decisions against a generic method, in one run.

    python benchmarks/sampling.py [--json]

`stop or go on`: every state of 200 votes of up to 100 samples, by the exact Bayes factor (with and
without what earlier states left in the cache) and by Monte Carlo of 1,000 draws, which is the paper's.
`lottery`: 20,000 prompts of 8 candidates in closed form, against HiGHS one prompt at a time (200 of them).
`ensemble`: seconds to prove the most prompts right for 5 models and 150 generated prompts, mean of three
draws, against the plain program with big-M of one and all rows.
"""

import argparse
import json
import time

import numpy as np

from gpusched.sampling import bayes_factor as exact
from gpusched.sampling.ballot import Ballot
from gpusched.sampling.ensemble import AnswerRates
from gpusched.sampling.safe_mixing import MixingRules, mix
from gpusched.sampling.weights import STRICT, ensemble_weights
from gpusched.solve.milp import Program

THRESHOLD = 100.0
DRAWS = 1000


def seconds_of(work, repeat=1):
    began = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - began) / repeat


def states(rng, votes=200, samples=100):
    """Counts after every sample until the vote stops."""
    found = []
    for _ in range(votes):
        shares = rng.dirichlet(np.r_[4.0, np.full(9, 0.4)])
        ballot = Ballot()
        for answer in rng.choice(10, samples, p=shares).tolist():
            ballot.add(answer)
            found.append(ballot.tally.counts)
            if exact.reaches(found[-1], THRESHOLD):
                break
    return found


def monte_carlo(counts, rng):
    shares = rng.dirichlet(np.r_[counts, exact.ALPHA], DRAWS)
    wins = (shares[:, 0] >= shares.max(axis=1)).mean()
    return len(counts) * wins / (1 - wins) >= THRESHOLD if wins < 1 else True


def forget():
    for cached in (exact._reaches, exact._bounds, exact._wrong, exact._bayes_factor, exact._beyond):
        cached.cache_clear()


def stopping(rng):
    seen = states(rng)
    sample = seen[:: max(1, len(seen) // 2000)]
    slow = seconds_of(lambda: [monte_carlo(counts, rng) for counts in sample]) / len(sample)
    forget()
    distinct = list(dict.fromkeys(seen))
    first = seconds_of(lambda: [exact.reaches(c, THRESHOLD) for c in distinct]) / len(distinct)
    again = seconds_of(lambda: [exact.reaches(c, THRESHOLD) for c in seen], 5) / len(seen)
    forget()
    integral = seconds_of(lambda: [exact.wrong_probability(c) for c in distinct]) / len(distinct)
    base = "Monte Carlo, 1000 draws"
    return [
        row("stop or go on, state not seen before", first * 1e6, "us", base, slow * 1e6),
        row("stop or go on, any state in traffic", again * 1e6, "us", base, slow * 1e6),
        row("exact probability, always integrated", integral * 1e6, "us", base, slow * 1e6),
    ]


def lottery(rng):
    h, r = rng.random((20_000, 8)), rng.random((20_000, 8))
    rules = MixingRules(0.1, max_extra_harm=1.0)
    mix(h[:2], r[:2], rules)  # compile
    ours = seconds_of(lambda: mix(h, r, rules), 3) / len(h)
    one = seconds_of(lambda: [mix(h[q], r[q], rules) for q in range(2000)]) / 2000

    def by_highs():
        for q in range(200):
            program = Program(maximize=True)
            w = program.variables(8, cost=h[q] - h[q, 0], upper=1.0)
            program.row(w, lower=1.0, upper=1.0)
            program.row(w, r[q] - r[q, 0], upper=0.1)
            program.solve()

    slow = seconds_of(by_highs) / 200
    return [
        row("lottery, a prompt of a batch", ours * 1e6, "us", "HiGHS", slow * 1e6),
        row("lottery, one prompt alone", one * 1e6, "us", "HiGHS", slow * 1e6),
    ]


def generated(rng, prompts=150, models=5):
    """Answer rates of models that mostly know, or mostly share a mistake."""
    found = []
    for _ in range(prompts):
        known = rng.choice([rng.beta(6, 2), rng.beta(2, 3)], p=[0.7, 0.3])
        centre = np.r_[known, (1 - known) * rng.dirichlet(np.full(5, 0.5))]
        found.append(AnswerRates(rng.dirichlet(8 * centre + 0.05, models), 0))
    return found


def plain_program(prompts, models=5):
    program = Program(maximize=True)
    w = program.variables(models, upper=1.0)
    y = program.variables(len(prompts), cost=1.0, upper=1.0, integer=True)
    program.row(w, lower=1.0, upper=1.0)
    for q, prompt in enumerate(prompts):
        for lead in prompt.leads:
            program.row([*w, y[q]], [*lead, -1.0 - STRICT], lower=-1.0)
    return program.solve(time_limit_s=60)


def ensemble(rng):
    ours, plain, same = [], [], True
    for _ in range(3):
        prompts = generated(rng)
        found = ensemble_weights(prompts, widest=False)
        theirs = plain_program(prompts)
        ours.append(found.seconds)
        plain.append(theirs.seconds)
        same &= found.proven and round(theirs.objective) == found.correct
    return [
        row(
            "ensemble of 5 models, 150 prompts", np.mean(ours), "s", "plain program", np.mean(plain)
        )
        | {"same_optimum": bool(same)}
    ]


def row(name, value, unit, baseline, baseline_value):
    return {
        "name": name, "value": float(value), "unit": unit, "baseline": baseline,
        "baseline_value": float(baseline_value), "ratio": float(baseline_value / value),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.perf_counter()
    rows = [
        found
        for part in (stopping, lottery, ensemble)
        for found in part(np.random.default_rng(args.seed))
    ]
    if args.json:
        seconds = time.perf_counter() - began
        print(json.dumps({"benchmark": "sampling", "seconds": seconds, "rows": rows}))
        return
    for found in rows:
        print(
            f"{found['name']:40s} {found['value']:9.3g} {found['unit']}  {found['baseline']} "
            f"{found['baseline_value']:9.3g} {found['unit']}  {found['ratio']:8.1f} x"
        )


if __name__ == "__main__":
    main()
