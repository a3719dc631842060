"""Time of a weight solve and of a combination of advantages, against general solvers and MGDA.

    python benchmarks/alignment.py [--json]

Alternatives are timed in the same run, one after the other, in CPU seconds of the best of a few. Weight solves: random
normal values of K candidates on G objectives, against scipy's SLSQP (on the logarithm, with exact
gradients) and HiGHS for the limit of infinite strength. Quadratics: min-norm points against SLSQP.
Combinations: 10 objectives, a million tokens of float32. With torch, an update of a transformer with
PAMA's combination against MGDA's, which needs a backward pass an objective.
"""

import argparse
import json
import time
from importlib.util import find_spec

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from gpusched.alignment.combine import combine
from gpusched.solve.convex_simplex import log_mean_exp_weights, matrix_game, min_norm_weights


def best_of(function, repeats=5):
    best = np.inf
    for _ in range(repeats):
        begun = time.process_time()
        function()
        best = min(best, time.process_time() - begun)
    return best


def slsqp(value, gradient, g):
    return minimize(
        value, np.full(g, 1 / g), jac=gradient, method="SLSQP", bounds=[(0, 1)] * g,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(g)},
        options={"ftol": 1e-12, "maxiter": 200},
    )  # fmt: skip


def weights_by_slsqp(v, strength):
    def value(w):
        return logsumexp(strength * v @ w)

    def gradient(w):
        return strength * softmax(strength * v @ w) @ v

    return slsqp(value, gradient, v.shape[1]).x


def row(name, seconds, unit, baseline, baseline_seconds, **more):
    scale = {"us": 1e6, "ms": 1e3}[unit]
    return {
        "name": name, "value": scale * seconds, "unit": unit, "baseline": baseline,
        "baseline_value": scale * baseline_seconds, "ratio": baseline_seconds / seconds, **more,
    }  # fmt: skip


def weight_solves():
    rng = np.random.default_rng(0)
    log_mean_exp_weights(np.eye(2), 1.0)
    rows = []
    for k, g in ((8, 2), (16, 5), (16, 10)):
        for strength in (1.0, 10.0):
            v = rng.normal(size=(2000, k, g))
            found = log_mean_exp_weights(v, strength)
            ours = best_of(lambda v=v, s=strength: log_mean_exp_weights(v, s)) / len(v)
            few = v[:40]

            def general(few=few, strength=strength):
                return [weights_by_slsqp(x, strength) for x in few]

            other = best_of(general, 2) / len(few)
            worst = max(
                float(logsumexp(strength * x @ w) - np.log(k) - f)
                for x, w, f in zip(few, general(), found.value, strict=False)
            )
            rows.append(
                row(
                    f"weights, K = {k}, G = {g}, strength {strength:g}", ours, "us", "scipy SLSQP", other,
                    largest_gap=float(found.gap.max()), slsqp_above_ours=worst,
                )
            )  # fmt: skip
    v = rng.normal(size=(200, 16, 5))
    ours = best_of(lambda: log_mean_exp_weights(v, 1e4)) / len(v)
    other = best_of(lambda: [matrix_game(x) for x in v[:20]], 2) / 20
    rows.append(
        row(
            "weights, K = 16, G = 5, strength 10,000",
            ours,
            "us",
            "HiGHS, two LPs of the limit",
            other,
        )
    )
    for n in (3, 8, 16):
        x = rng.normal(size=(2000, n, 40)) + 0.3
        gram = x @ np.swapaxes(x, 1, 2)
        min_norm_weights(gram[:2])
        ours = best_of(lambda gram=gram: min_norm_weights(gram)) / len(gram)
        other = best_of(
            lambda gram=gram, n=n: [
                slsqp(lambda w, q=q: w @ q @ w, lambda w, q=q: 2 * q @ w, n) for q in gram[:40]
            ], 2,
        ) / 40  # fmt: skip
        rows.append(row(f"min-norm point of {n}", ours, "us", "scipy SLSQP", other))
    return rows


def combinations():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(1000, 1000, 10)).astype(np.float32)
    combine(a[:2])
    plain = best_of(lambda: np.nanmin(np.maximum(a, 0), axis=-1), 3)
    rows = []
    for name, options in (
        ("token, not standardised", {"mode": "token", "normalise": False}),
        ("token", {"mode": "token"}), ("batch_qp", {"mode": "batch_qp"}),
    ):  # fmt: skip
        seconds = best_of(lambda options=options: combine(a, **options))
        rows.append(
            row(
                f"{name}, 10 objectives, 1e6 tokens",
                seconds,
                "ms",
                "numpy nanmin of max(A, 0)",
                plain,
            )
        )
    b = np.ascontiguousarray(a[..., :5])
    half = best_of(lambda: combine(b, normalise=False))
    rows.append(
        row(
            "token, not standardised, 5 objectives",
            half,
            "ms",
            "10 objectives",
            rows[0]["value"] / 1e3,
        )
    )
    return rows


def updates():
    if find_spec("torch") is None:
        return []
    import torch

    from gpusched.alignment.policy_gradient import policy_gradient_step
    from gpusched.reproduce.tiny_transformer import TinyTransformer

    torch.set_num_threads(1)
    model = TinyTransformer(32, 33, width=128, layers=4)
    tokens = torch.randint(32, (64, 33))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)

    def log_p():
        return model(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]

    rows = []
    for n in (2, 4, 8):
        rewards = torch.randn(64, n)
        times = {
            mode: best_of(
                lambda mode=mode, r=rewards: policy_gradient_step(
                    log_p, optimiser, r, torch.ones(64, 32), 8, mode=mode
                ),
                3,
            )
            for mode in ("token", "batch_qp", "mgda")
        }
        for mode in ("token", "batch_qp"):
            rows.append(
                row(
                    f"update, {n} objectives, {mode}",
                    times[mode],
                    "ms",
                    "MGDA, full gradients",
                    times["mgda"],
                )
            )
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    begun = time.perf_counter()
    rows = weight_solves() + combinations() + updates()
    if args.json:
        seconds = time.perf_counter() - begun
        print(json.dumps({"benchmark": "alignment", "seconds": seconds, "rows": rows}))
        return
    print(f"{'':52}{'ours':>12}{'baseline':>12}{'ratio':>9}  baseline")
    for r in rows:
        print(
            f"{r['name']:52}{r['value']:9.2f} {r['unit']}{r['baseline_value']:9.1f} {r['unit']}"
            f"{r['ratio']:9.1f}  {r['baseline']}"
        )


if __name__ == "__main__":
    main()
