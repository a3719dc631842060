"""Fit the built-in traffic profiles to public traces and show how well they fit.

python benchmarks/fit_trace_profiles.py --data DIR [--write] [--json]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import ks_2samp, spearmanr

from gpusched.traces.generate import generate
from gpusched.traces.profiles import LEVELS, profiles
from gpusched.traces.read import read_trace
from gpusched.traces.sessions import sessions_from_prefixes

TARGET = Path(__file__).parents[1] / "src/gpusched/traces/profiles.toml"
SESSION_CONTEXT_TOKENS = 262144


def quantiles(values):
    return [round(float(max(q, 1e-2)), 2) for q in np.quantile(values, LEVELS)]


def lengths(file):
    table = pq.read_table(file)
    prompt, output = (table[c].to_numpy() for c in ("input_tokens", "output_tokens"))
    keep = (prompt > 0) & (output > 0)
    return prompt[keep], output[keep]


def single(file, source):
    prompt, output = lengths(file)
    return {
        "prompt_tokens": quantiles(prompt),
        "output_tokens": quantiles(output),
        "correlation": round(float(spearmanr(prompt, output).statistic), 3),
        "source": source,
    }


def reasoning(data):
    """Mix the clients' published length quantiles by the requests they sent."""
    rates = pq.read_table(data / "servegen_client_rates.parquet").to_pydict()
    weight = {}
    for model, client, rate in zip(rates["model"], rates["client"], rates["rate_rps"], strict=True):
        if model == "deepseek-r1":
            weight[client] = weight.get(client, 0.0) + rate
    table = pq.read_table(data / "servegen_lengths.parquet").to_pylist()
    levels = {
        "min": 0,
        "p01": 0.01,
        "p05": 0.05,
        "p10": 0.1,
        "p25": 0.25,
        "p50": 0.5,
        "p75": 0.75,
        "p90": 0.9,
        "p95": 0.95,
        "p99": 0.99,
        "max": 1,
    }
    rng = np.random.default_rng(0)
    samples = {"input_tokens": [], "output_tokens": []}
    rows = [r for r in table if r["model"] == "deepseek-r1" and r["field"] in samples]
    windows = {}
    for row in rows:
        windows[row["client"], row["field"]] = windows.get((row["client"], row["field"]), 0) + 1
    total = sum(weight.values())
    for row in rows:
        n = int(2e5 * weight.get(row["client"], 0.0) / total / windows[row["client"], row["field"]])
        values = [max(row[level], 1.0) for level in levels]
        samples[row["field"]].append(
            np.exp(np.interp(rng.random(n), list(levels.values()), np.log(values)))
        )
    prompt, output = (np.concatenate(samples[f]) for f in ("input_tokens", "output_tokens"))
    return {
        "prompt_tokens": quantiles(prompt),
        "output_tokens": quantiles(output),
        "correlation": 0.0,
        "source": "ServeGen, deepseek-r1 clients weighted by rate (Apache-2.0); pairs not published",
    }


def agent(data):
    t = pq.read_table(data / "agentic_coding.parquet")
    main = np.array([a == "" for a in t["agent"].to_pylist()])
    col = {
        c: t[c].to_numpy()[main]
        for c in (
            "session",
            "turn",
            "input_tokens",
            "output_tokens",
            "think_time_s",
            "incr_prefill_tokens",
        )
    }
    later = col["turn"] > 0
    rounds = np.unique(col["session"], return_counts=True)[1]
    small = col["input_tokens"] <= SESSION_CONTEXT_TOKENS
    first = col["input_tokens"][(col["turn"] == 0) & small]
    return {
        "prompt_tokens": quantiles(first),
        "output_tokens": quantiles(np.maximum(col["output_tokens"], 1)),
        "correlation": 0.0,
        "rounds": quantiles(rounds),
        "growth_tokens": quantiles(np.maximum(col["incr_prefill_tokens"][later & small], 1)),
        "think_s": quantiles(np.maximum(np.nan_to_num(col["think_time_s"][later]), 0.01)),
        "shared_tokens": 8192,
        "max_context_tokens": SESSION_CONTEXT_TOKENS,
        "source": "coding-agent sessions of kv-cache-tester (Apache-2.0), main threads, contexts up to 256k",
    }


def rounds_of(trace, source, *, max_context_tokens, shared_tokens):
    """Profile of a trace with sessions; rounds whose context shrank (another branch) are left out."""
    order = np.lexsort((trace.round, trace.session_id))
    prompt = trace.prompt_tokens[order].astype(np.int64)
    output = trace.output_tokens[order].astype(np.int64)
    later = np.concatenate(([False], np.diff(trace.session_id[order]) == 0))
    growth = (prompt[1:] - prompt[:-1] - output[:-1])[later[1:]]
    think_s = trace.think_s[order][later]
    return {
        "prompt_tokens": quantiles(prompt[~later]),
        "output_tokens": quantiles(np.maximum(output, 1)),
        "correlation": 0.0,
        "rounds": quantiles(np.bincount(trace.session_id)),
        "growth_tokens": quantiles(growth[growth > 0]),
        "think_s": quantiles(np.maximum(think_s[think_s > 0], 0.01)),
        "shared_tokens": shared_tokens,
        "max_context_tokens": max_context_tokens,
        "source": source,
    }


def tool_agent(data):
    trace = read_trace(data / "agentic_swebench_calls.parquet", rate_rps=1.0)
    return rounds_of(
        trace,
        "SWE-bench agent runs of agent-llm-traces (CDLA-Permissive-2.0); the harness's prompt is shared",
        max_context_tokens=131072,
        shared_tokens=15872,
    )


def assistant(data):
    trace = sessions_from_prefixes(read_trace(data / "mooncake_conversation.parquet"))
    return rounds_of(
        trace,
        "Mooncake conversation trace (Apache-2.0), sessions told from growing prefixes",
        max_context_tokens=131072,
        shared_tokens=0,
    )


def rag():
    """Iterative retrieval: no public trace of lengths, so these are assumptions, not a fit."""
    passages = [250, 330, 450, 520, 620, 720, 820, 930, 1050, 1200, 1400, 1750, 2200, 3400, 6000]
    return {
        "prompt_tokens": [
            120,
            130,
            145,
            155,
            170,
            180,
            190,
            200,
            215,
            230,
            255,
            300,
            360,
            520,
            900,
        ],
        "output_tokens": [8, 12, 20, 26, 36, 46, 56, 68, 82, 100, 126, 172, 225, 370, 700],
        "correlation": 0.0,
        "rounds": [4] * len(LEVELS),
        "growth_tokens": passages,
        "think_s": [
            0.02,
            0.03,
            0.05,
            0.06,
            0.08,
            0.1,
            0.12,
            0.15,
            0.18,
            0.22,
            0.3,
            0.45,
            0.7,
            1.5,
            4.0,
        ],
        "shared_tokens": 96,
        "max_context_tokens": 131072,
        "source": "assumed: three retrieval calls a session, some five passages each; no public trace",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--write", action="store_true", help="rewrite the shipped profiles")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    azure = "Azure LLM inference trace 2023, {} (CC-BY-4.0)"
    singles = {
        "chat": ("azure_2023_conv.parquet", azure.format("conversation")),
        "code": ("azure_2023_code.parquet", azure.format("code")),
        "summarize": (
            "arxiv_summarization_lengths.parquet",
            "arXiv summarisation lengths of Vidur (MIT)",
        ),
    }
    fitted = {name: single(args.data / file, source) for name, (file, source) in singles.items()}
    fitted["reason"] = reasoning(args.data)
    fitted["agent"] = agent(args.data)
    fitted["tool-agent"] = tool_agent(args.data)
    fitted["assistant"] = assistant(args.data)
    fitted["rag"] = rag()
    if args.write:
        head = "# Quantiles at the levels of gpusched.traces.profiles.LEVELS, fitted by\n"
        head += "# benchmarks/fit_trace_profiles.py to the public traces each names.\n"
        body = "".join(
            f"\n[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in row.items())
            for name, row in fitted.items()
        )
        TARGET.write_text(head + body)
        profiles.cache_clear()
    rows = []
    for name, (file, _) in singles.items():
        trace = generate(name, 100.0, 200.0, seed=1)
        for column, values in zip(
            ("prompt_tokens", "output_tokens"), lengths(args.data / file), strict=True
        ):
            made = getattr(trace, column)
            rows.append(
                {
                    "name": f"{name} {column}",
                    "value": float(ks_2samp(made, values).statistic),
                    "unit": "KS distance",
                    "baseline": "mean, generated / real",
                    "baseline_value": float(made.mean()),
                    "ratio": float(made.mean() / values.mean()),
                }
            )
    if args.json:
        print(json.dumps({"benchmark": "trace profiles", "seconds": 0.0, "rows": rows}))
    else:
        for row in rows:
            print(
                f"{row['name']:28s} KS {row['value']:.4f}  mean generated / real {row['ratio']:.3f}"
            )


if __name__ == "__main__":
    main()
