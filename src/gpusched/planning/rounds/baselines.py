"""What else could serve the same sessions on the same GPUs: the comparisons of AMPD's paper."""

from gpusched.domain.spec import Spec

BASELINES = ("disaggregated", "disaggregated, prefix-aware", "co-located")


def baseline_spec(spec: Spec, name: str) -> Spec:
    """Return a question whose answer is the best plan of a baseline.

    ``disaggregated``: every prefill on a prefill worker, the history shipped there and back;
    ``disaggregated, prefix-aware``: prefill workers keep prefixes of their own and are chosen by them;
    ``co-located``: chunked prefill among the decodes, rounds sent to who has their prefix.
    """
    routing = "remote-prefill" if name == "disaggregated" else "prefix-affinity"
    roles = ("mixed",) if name == "co-located" else ("disaggregated",)
    rounds = spec.workload.rounds
    assert rounds is not None
    workload = spec.workload.model_copy(
        update={"rounds": rounds.model_copy(update={"local_share": 0.0})}
    )
    engine = spec.engine.model_copy(update={"batching": "vllm"})
    return spec.model_copy(
        update={
            "routing": routing,
            "workload": workload,
            "engine": engine,
            "search": spec.search.model_copy(update={"roles": roles}),
        }
    )
