"""Predict measured TTFT and TPOT of real engines, and fit the timing model to part of them.

    python benchmarks/timing_accuracy.py [--data FILE] [--json]
    python benchmarks/timing_accuracy.py --fit        refit the shipped coefficients

Rows are split by configuration (model, GPU, engine, precision, layout, lengths; all concurrencies
together): seven in ten are fitted, the figures are of rows never fitted. Rows that no engine of the
stated layout could give are left out of the fit and of the figures, counted by reason; `with
doubtful` gives the figures over all rows of the configurations kept out, those included. Baselines: the same model
without any fit, in the same run, and NVIDIA AIConfigurator 0.12.0's
errors on the 783 aggregated rows it could answer, which are not the same rows.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from dataclasses import replace
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.dtypes import WEIGHT_BYTES
from gpusched.domain.engine import EngineSettings
from gpusched.domain.parallel import Parallelism
from gpusched.errors import InputError
from gpusched.timing import coefficients as tables
from gpusched.timing.coefficients import dtype_family
from gpusched.timing.iteration import model_kind, timing_model
from gpusched.timing.memory import memory, weights_bytes
from gpusched.timing.operators import experts_read
from gpusched.timing.serving import aggregated, disaggregated

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("GPUSCHED_SHARED", ROOT.parent / "shared"))
FITS = ROOT / "src/gpusched/timing/fits.toml"
FITTED_ROWS = Path(__file__).with_name("timing_fitted_rows.txt")
AICONFIGURATOR = {"tpot_mape": 30.8, "ttft_mape": 60.1}
"""AIConfigurator 0.12.0 `estimate` on 783 of the aggregated rows it could answer."""
AICONFIGURATOR_TPOT = {
    ("Qwen3-235B-A22B-FP8", "h100_sxm", "trtllm"): 9.7, ("Qwen3-235B-A22B-FP8", "h200_sxm", "sglang"): 23.1,
    ("Qwen3-235B-A22B-FP8", "h200_sxm", "vllm"): 124.9, ("Qwen3-32B", "h100_sxm", "sglang"): 27.8,
    ("Qwen3-32B", "h100_sxm", "trtllm"): 12.2, ("Qwen3-32B", "h100_sxm", "vllm"): 12.6,
    ("Qwen3.5-397B-A17B", "b200_sxm", "sglang"): 20.7, ("Qwen3.5-397B-A17B", "b300_sxm", "sglang"): 15.7,
    ("DeepSeek-R1", "b200_sxm", "sglang"): 44.4, ("DeepSeek-R1", "b200_sxm", "trtllm"): 89.9,
    ("DeepSeek-R1", "h200_sxm", "sglang"): 54.0, ("DeepSeek-R1", "h200_sxm", "trtllm"): 75.9,
    ("DeepSeek-V3", "b200_sxm", "sglang"): 27.8, ("DeepSeek-V3", "b200_sxm", "trtllm"): 22.0,
    ("DeepSeek-V3", "b300_sxm", "sglang"): 34.5, ("DeepSeek-V3", "h200_sxm", "sglang"): 54.0,
    ("DeepSeek-V3", "h200_sxm", "trtllm"): 14.3,
}  # fmt: skip
UNTRUSTED = {
    ("Llama-3.1-8B-Instruct-FP8", "h200_sxm", "vllm"): "faster than the weights can be read",
    ("Qwen3-235B-A22B-FP8", "h200_sxm", "vllm"): "layout columns contradict each other",
}
MTP = "multi-token prediction: twice as fast as the same model, GPUs and engine without it"
SPECULATIVE = {
    ("DeepSeek-R1", "b200_sxm", "trtllm", "1.2.0rc6.post3"): MTP,
    ("DeepSeek-R1", "h200_sxm", "trtllm", "1.1.0rc2.post2"): MTP,
}
DTYPES = {"": "bf16", "bf16": "bf16", "fp8": "fp8", "fp4": "nvfp4", "int4": "int4"}
# Fitted figures: start of additive times, and how far the fit may move each, in log units.
TIMES = {
    "host_s": (5e-4, 1.2),
    "layer_s": (4e-6, 1.2),
    "tp_layer_s": (2e-6, 1.0),
    "sequence_s": (1e-5, 1.2),
    "ep_imbalance": (0.05, 1.2),
}
SHARES = {"gemm_compute": 0.3, "gemm_memory": 0.15, "moe_compute": 0.5, "moe_memory": 0.35,
          "decode_attention_memory": 0.3, "prefill_attention_compute": 0.3, "prefill_share": 0.4}  # fmt: skip


WAITING = {"admission_s": 0.03, "queue_log": 0.125, "queue_linear": 0.01, "queue_load": 0.05}
CONTRADICTION = 1.6
"""Ratio beyond which two measurements of one configuration cannot both be of the same engine."""


def number(row, key, default=1.0):
    value = row.get(key, "")
    return float(value) if value not in ("", None) else default


def size(row, key):
    return max(int(number(row, key)), 1)


def layout(row, prefix=""):
    """Return the parallelism; where both MoE sizes repeat the group, so do the sizes above them.

    Data-parallel attention without sizes for the experts shards them over the whole group.
    """
    tp, dp, pp = (size(row, f"{prefix}{name}_size") for name in ("tp", "attention_dp", "pp"))
    moe_tp, moe_ep = size(row, f"{prefix}moe_tp_size"), size(row, f"{prefix}moe_ep_size")
    group = tp * dp
    if tp == dp > 1 and moe_tp * moe_ep == group:
        tp, moe_tp, moe_ep, group = 1, 1, dp, dp
    if moe_tp == moe_ep > 1 and group == moe_tp * moe_ep:
        tp, dp = (moe_tp, 1) if dp == 1 else (1, moe_tp)
        group = moe_tp
    if dp > 1 and moe_tp == moe_ep == 1 and load_model(row["model_path"]).moe is not None:
        moe_ep = group
    ep = min(moe_ep, group)
    return Parallelism(tp=tp, pp=pp, dp=dp, ep=ep if group % ep == 0 else 1)


def key_of(row, *, with_users):
    """Return the row's configuration as text, its concurrency too if asked."""
    dropped = {
        "contradiction",
        "ttft_ms",
        "tpot_ms",
        "concurrency",
        "batch_size",
        "prefill_batch_size",
        "decode_batch_size",
        "backend_version",
    }
    parts = [f"{k}={v}" for k, v in sorted(row.items()) if k not in dropped]
    if with_users:
        parts += [f"{k}={row[k]}" for k in ("concurrency", "ttft_ms", "tpot_ms")]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:10]


def usable(rows):
    """Return the rows that can be predicted, and count the others by reason."""
    skipped, cases, seen = Counter(), [], set()
    for row in rows:
        key = key_of(row, with_users=True)
        if key in seen:
            skipped["duplicate row"] += 1
            continue
        seen.add(key)
        try:
            load_model(row["model_path"])
            load_gpu(row["system"])
        except InputError:
            skipped[f"unknown model or GPU: {row['model_path']} on {row['system']}"] += 1
            continue
        if not (number(row, "tpot_ms", 0) > 0 and number(row, "ttft_ms", 0) > 0):
            skipped["no measured latency"] += 1
            continue
        cases.append(row)
    mark_contradictions(cases)
    return cases, skipped


def mark_contradictions(rows):
    """Mark rows whose TPOT differs from, or falls far below, that of no more users otherwise alike."""
    alike = defaultdict(list)
    for row in rows:
        row["contradiction"] = ""
        alike[key_of(row, with_users=False)].append(row)
    for group in alike.values():
        for row in group:
            fewer = [r for r in group if users(r) <= users(row)]
            same = [
                r
                for r in fewer
                if users(r) == users(row) and r["backend_version"] == row["backend_version"]
            ]
            tpot = number(row, "tpot_ms")
            slowest, quickest = (
                max(number(r, "tpot_ms") for r in fewer),
                min(number(r, "tpot_ms") for r in same),
            )
            if slowest > CONTRADICTION * tpot or tpot > CONTRADICTION * quickest:
                row["contradiction"] = (
                    "contradicts a measurement of the same configuration with no more users"
                )


def doubt(row):
    """Return why a row describes no engine that could have given its figures, or None."""
    model, gpu, dtype = load_model(row["model_path"]), load_gpu(row["system"]), dtype_of(row)
    disagg = row["mode"] == "disagg"
    if row["contradiction"]:
        return row["contradiction"]
    if disagg and not row["decode_num_workers"]:
        return "disaggregated, number of workers not stated"
    for p in [layout(row, side) for side in (("prefill_", "decode_") if disagg else ("",))]:
        if model.attention.query_heads % p.tp:
            return "tensor parallelism does not divide the attention heads"
        if weights_bytes(model, p, dtype) > gpu.memory_bytes:
            return "weights exceed the memory of the stated GPUs"
    if number(row, "tpot_ms") < 1e3 * reading_s(row, model, gpu, p):
        return "faster than memory can be read: speculative decoding, or fewer requests at a time"
    known = (row["model_path"].split("/")[-1], row["system"], row["backend"])
    return SPECULATIVE.get((*known, row["backend_version"])) or UNTRUSTED.get(known)


def reading_s(row, model, gpu, p):
    """Return the least time of a decode step: reading weights and cache at the full bandwidth."""
    workers = number(row, "decode_num_workers")
    batch = users(row) / workers if row["mode"] == "agg" else 1.0
    width = WEIGHT_BYTES[dtype_of(row)]
    read_bytes = weights_bytes(model, p, dtype_of(row))
    if model.moe is not None:
        idle = model.moe.experts - float(
            experts_read(model.moe.experts, model.moe.top_k, np.array(batch))
        )
        read_bytes -= model.moe_layers * idle * model.expert_parameters * width / (p.tp * p.dp)
    read_bytes -= model.embedding_parameters * (0 if model.tied_embeddings else 2.0) / p.tp
    return read_bytes / gpu.memory_bytes_per_s


def users(row):
    """Return the concurrency; where it is missing, the batch of all data-parallel ranks."""
    return number(row, "concurrency", 0) or number(row, "batch_size") * layout(row).dp


def kv_dtype_of(row):
    """Return the KV format: benchmarks of quantised weights set fp8, GPT-OSS on Hopper aside."""
    dtype, old = dtype_of(row), row["system"][0] == "h" and row["backend"] != "trtllm"
    return "bf16" if dtype == "bf16" or (dtype == "mxfp4" and old) else "fp8"


def case_group(row):
    """Return what shares a fit: GPU, engine, format, kind of model, mode."""
    model = load_model(row["model_path"])
    return (
        row["system"],
        row["backend"],
        dtype_family(dtype_of(row)),
        model_kind(model),
        row["mode"] == "disagg",
    )


def dtype_of(row):
    if "gpt-oss" in row["model_path"]:
        return "mxfp4"
    return DTYPES.get(row["precision"], "bf16")


class Batch:
    """Rows of one model and layout, predicted together."""

    def __init__(self, rows, level):
        row = rows[0]
        self.rows, self.disagg = rows, row["mode"] == "disagg"
        model, gpu, dtype = load_model(row["model_path"]), load_gpu(row["system"]), dtype_of(row)
        kv = kv_dtype_of(row)

        def timing(parallelism):
            return timing_model(model, gpu, parallelism, weights_dtype=dtype, kv_cache_dtype=kv,
                                framework=row["backend"], disaggregated=self.disagg, level=level)  # fmt: skip

        if self.disagg:
            self.prefill, self.timing = (
                timing(layout(row, "prefill_")),
                timing(layout(row, "decode_")),
            )
        else:
            self.timing = timing(layout(row))
            use = memory(model, gpu, self.timing.parallelism, EngineSettings(gpu_memory_utilization=0.97),
                         weights_dtype=dtype, kv_cache_dtype=kv, max_num_batched_tokens=2048)  # fmt: skip
            self.kv_tokens = max(use.kv_blocks(16, 1) * 16, 65536)
        column = {k: np.array([number(r, k) for r in rows]) for k in
                  ("isl", "osl", "concurrency", "ttft_ms", "tpot_ms", "prefill_num_workers", "decode_num_workers")}  # fmt: skip
        column["concurrency"] = np.array([users(r) for r in rows])
        self.column = column

    def predict(self, change=None):
        c = self.column
        timing = (
            replace(self.timing, coefficients=change(self.timing.coefficients))
            if change
            else self.timing
        )
        if self.disagg:
            prefill = (
                replace(self.prefill, coefficients=change(self.prefill.coefficients))
                if change
                else self.prefill
            )
            return disaggregated(prefill, timing, c["isl"], c["osl"], c["concurrency"],
                                 c["prefill_num_workers"], c["decode_num_workers"])  # fmt: skip
        return aggregated(timing, c["isl"], c["osl"], c["concurrency"], self.kv_tokens)

    def errors(self, change=None):
        """Return log(predicted / measured) of TTFT and TPOT."""
        ttft, tpot = self.predict(change)
        return np.log(ttft * 1e3 / self.column["ttft_ms"]), np.log(
            tpot * 1e3 / self.column["tpot_ms"]
        )


def batches(rows, level):
    groups = defaultdict(list)
    for row in rows:
        same = tuple(
            row.get(k, "") for k in row if k.endswith(("tp_size", "pp_size", "dp_size", "ep_size"))
        )
        groups[
            row["model_path"], row["system"], row["backend"], row["precision"], row["mode"], same
        ].append(row)
    return [Batch(group, level) for group in groups.values()]


def is_fitted(row):
    """Tell whether a configuration is among the seven in ten that are fitted."""
    return int(key_of(row, with_users=False), 16) % 10 < 7


def fit_group(rows, prior, evaluations):
    """Return the figures that explain the rows best, held near a prior."""
    group = batches(rows, level=1)
    moe = load_model(rows[0]["model_path"]).moe is not None
    shares = [n for n in SHARES if moe or not n.startswith("moe")]
    names = shares + list(TIMES)
    widths = np.array([SHARES[n] for n in shares] + [TIMES[n][1] for n in TIMES])
    start = np.array([prior.get(n, 0.0) for n in names])

    def values(x, base):
        found = {
            n: min(getattr(base, n) * np.exp(v), 1.0 if n != "prefill_share" else 3.0)
            for n, v in zip(shares, x, strict=False)
        }
        return found | {
            n: TIMES[n][0] * np.exp(v) for n, v in zip(TIMES, x[len(shares) :], strict=True)
        }

    def residuals(x):
        errors = [b.errors(lambda c: replace(c, **values(x, c)))[1] for b in group]
        return np.concatenate([np.concatenate(errors) / 0.06, (x - start) / widths])

    found = least_squares(
        residuals, start, loss="soft_l1", max_nfev=evaluations, bounds=(-6, 2.5)
    ).x
    tuned = values(found, group[0].timing.coefficients)

    def ttft_residuals(x):
        waiting = dict(zip(WAITING, np.exp(x), strict=True))
        errors = [b.errors(lambda c: replace(c, **values(found, c), **waiting))[0] for b in group]
        return np.concatenate([np.concatenate(errors) / 0.15, (x - at) / 0.7])

    at = np.log(list(WAITING.values()))
    x = least_squares(
        ttft_residuals, at, loss="soft_l1", max_nfev=30, bounds=(np.log(1e-4), np.log(20))
    ).x
    tuned |= {name: float(value) for name, value in zip(WAITING, np.exp(x), strict=True)}
    return tuned, dict(zip(names, found, strict=True))


def fit(rows):
    """Fit every group, first pooled over GPUs to have a prior, and write the figures."""
    train = [r for r in rows if is_fitted(r) and doubt(r) is None]
    by_group, by_engine = defaultdict(list), defaultdict(list)
    for row in train:
        gpu, engine, dtype, kind, disagg = case_group(row)
        by_group[gpu, engine, dtype, kind, disagg].append(row)
        by_engine[engine, kind, disagg].append(row)
    with Pool() as pool:
        pooled = pool.starmap(fit_group, [(group, {}, 10) for group in by_engine.values()], 1)
        priors = {key: prior for key, (_, prior) in zip(by_engine, pooled, strict=True)}
        keys = sorted(by_group)
        tasks = [(by_group[key], priors[key[1], key[3], key[4]], 25) for key in keys]
        found = pool.starmap(fit_group, tasks, 1)
    text = "# Figures fitted to end-to-end measurements by benchmarks/timing_accuracy.py --fit.\n"
    for key, (tuned, _) in zip(keys, found, strict=True):
        gpu, engine, dtype, kind, disagg = key
        group = by_group[key]
        text += f'\n[[fit]]\ngpu = "{gpu}"\nframework = "{engine}"\ndtype = "{dtype}"\nkind = "{kind}"\n'
        text += f"disaggregated = {str(disagg).lower()}\n"
        text += "".join(f"{name} = {value:.4g}\n" for name, value in tuned.items())
        unseen = [r for r in rows if not is_fitted(r) and doubt(r) is None and case_group(r) == key]
        errors = [
            np.abs(np.expm1(np.concatenate(e)))
            for e in zip(
                *(
                    b.errors(lambda c, t=tuned: replace(c, **t))
                    for b in batches(unseen or group, 1)
                ),
                strict=True,
            )
        ]
        if not unseen:
            errors = [2.0 * e for e in errors]
        layouts = [layout(r, "decode_" if disagg else "") for r in group]
        text += (
            f"calibration = {{ rows = {len(group)}, tpot_error = {errors[1].mean():.3f}, "
            f"ttft_error = {errors[0].mean():.3f}, max_tp = {max(p.tp for p in layouts)}, "
            f"max_batch = {int(max(number(r, 'concurrency') for r in group))}, max_context_tokens = "
            f"{int(max(number(r, 'isl') + number(r, 'osl') for r in group))} }}\n"
        )  # fmt: skip
        print(f"{gpu:10s} {engine:7s} {dtype:5s} {kind:6s} {'disagg' if disagg else 'agg':6s} "
              f"{len(group):4d} rows  TPOT {errors[1].mean():6.1%}  TTFT {errors[0].mean():6.1%}", flush=True)  # fmt: skip
    FITS.write_text(text)
    FITTED_ROWS.write_text("\n".join(sorted(key_of(r, with_users=True) for r in train)) + "\n")
    tables._tables.cache_clear()


def summary(pairs):
    """Return mean and median absolute error and bias, in percent."""
    error = np.expm1(np.asarray(pairs)) * 100
    if not error.size:
        return {"mape": None, "median": None, "bias": None}
    return {
        "mape": float(np.abs(error).mean()),
        "median": float(np.median(np.abs(error))),
        "bias": float(error.mean()),
    }


def evaluate(rows, level):
    """Return (row, log error of TTFT, log error of TPOT) for every row."""
    out = []
    for batch in batches(rows, level):
        out += zip(batch.rows, *batch.errors(), strict=True)
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=SHARED / "data/measured_serving.csv.gz")
    parser.add_argument(
        "--fit", action="store_true", help="refit and rewrite the shipped coefficients"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    started = time.perf_counter()
    if not args.data.exists():
        raise SystemExit(f"{args.data}: no such file; give the measured rows with --data")
    opener = gzip.open if args.data.suffix == ".gz" else open
    with opener(args.data, "rt", newline="") as file:
        rows, skipped = usable(list(csv.DictReader(file)))
    if args.fit:
        fit(rows)
    fitted = set(FITTED_ROWS.read_text().split()) if FITTED_ROWS.exists() else set()
    unseen = [r for r in rows if key_of(r, with_users=True) not in fitted]
    doubts = {id(r): doubt(r) for r in unseen}
    held = [r for r in unseen if doubts[id(r)] is None]
    seen = [r for r in rows if key_of(r, with_users=True) in fitted]
    doubted = [r for r in unseen if doubts[id(r)] is not None]
    skipped.update(f"doubtful: {doubts[id(r)]}" for r in doubted)
    doubted = [r for r in doubted if not (seen and is_fitted(r))]
    results, plain = evaluate(held, 2), evaluate(held, 1)

    def figures(chosen):
        return {"rows": len(chosen), **{f"{k}_{n}": v for k, i in (("ttft", 1), ("tpot", 2))
                                        for n, v in summary([c[i] for c in chosen]).items()}}  # fmt: skip

    def of_kind(chosen, dense):
        return [c for c in chosen if (load_model(c[0]["model_path"]).moe is None) == dense]

    groups = defaultdict(list)
    for case in results:
        groups[
            case[0]["model_path"].split("/")[-1],
            case[0]["system"],
            case[0]["backend"],
            case[0]["mode"],
        ].append(case)
    base = defaultdict(list)
    for case in plain:
        base[
            case[0]["model_path"].split("/")[-1],
            case[0]["system"],
            case[0]["backend"],
            case[0]["mode"],
        ].append(case)
    lines = [(key, figures(cases), figures(base[key])) for key, cases in sorted(groups.items())]
    overall, unfitted = figures(results), figures(plain)
    parts = {
        "dense": figures(of_kind(results, True)), "moe": figures(of_kind(results, False)),
        "with doubtful": figures(results + evaluate(doubted, 2)),
        "aggregated": figures([c for c in results if c[0]["mode"] == "agg"]),
        "disaggregated": figures([c for c in results if c[0]["mode"] == "disagg"]),
        "fitted rows": figures(evaluate(seen, 2)) if seen else None,
    }  # fmt: skip
    if args.json:
        table = []
        for (model, gpu, engine, mode), ours, theirs in lines:
            for what in ("tpot", "ttft"):
                table.append({
                    "name": f"{model} {gpu} {engine} {mode} {what}", "value": ours[f"{what}_mape"], "unit": "MAPE %",
                    "baseline": "unfitted", "baseline_value": theirs[f"{what}_mape"],
                    "ratio": theirs[f"{what}_mape"] / max(ours[f"{what}_mape"], 1e-9),
                    "median": ours[f"{what}_median"], "bias": ours[f"{what}_bias"], "rows": ours["rows"],
                    "aiconfigurator": AICONFIGURATOR_TPOT.get((model, gpu, engine)) if what == "tpot" and mode == "agg" else None,
                })  # fmt: skip
        document = {
            "benchmark": "timing_accuracy", "seconds": time.perf_counter() - started, "rows": table,
            "overall": {"rows": overall["rows"], "skipped": sum(skipped.values()), "tpot_mape": overall["tpot_mape"],
                        "ttft_mape": overall["ttft_mape"], "tpot_median": overall["tpot_median"],
                        "ttft_median": overall["ttft_median"], "skipped_reasons": dict(skipped), "with_doubtful": parts["with doubtful"]},
            "parts": parts, "unfitted": unfitted, "aiconfigurator": AICONFIGURATOR,
        }  # fmt: skip
        print(json.dumps(document))
        return
    print(
        "rows never fitted; errors in %: mean, median, bias; unfitted = the same model without any fit"
    )
    print(f"{'model':28s} {'GPU':9s} {'engine':7s} {'mode':6s} {'rows':>4s} | TPOT {'mean':>6s} {'med':>6s} {'bias':>6s} "
          f"{'unfit':>6s} {'AIC':>6s} | TTFT {'mean':>6s} {'med':>6s} {'bias':>6s}")  # fmt: skip
    for (model, gpu, engine, mode), f, u in lines:
        peer = AICONFIGURATOR_TPOT.get((model, gpu, engine)) if mode == "agg" else None
        print(f"{model:28s} {gpu:9s} {engine:7s} {mode:6s} {f['rows']:4d} |      {f['tpot_mape']:6.1f} {f['tpot_median']:6.1f} "
              f"{f['tpot_bias']:6.1f} {u['tpot_mape']:6.1f} {peer or '':>6} |      {f['ttft_mape']:6.1f} {f['ttft_median']:6.1f} "
              f"{f['ttft_bias']:6.1f}")  # fmt: skip
    for name, f in {"all": overall, **parts, "unfitted": unfitted}.items():
        if f and f["rows"]:
            print(f"{name:16s} {f['rows']:5d} rows  TPOT mean {f['tpot_mape']:6.1f} median {f['tpot_median']:6.1f}   "
                  f"TTFT mean {f['ttft_mape']:6.1f} median {f['ttft_median']:6.1f}")  # fmt: skip
    print(
        f"AIConfigurator 0.12.0 on the aggregated rows it answered: TPOT mean {AICONFIGURATOR['tpot_mape']}, TTFT mean {AICONFIGURATOR['ttft_mape']}"
    )
    for reason, count in skipped.most_common():
        print(f"skipped {count:4d}: {reason}")


if __name__ == "__main__":
    main()
