"""Ray Serve LLM: a configuration for ``serve deploy``, engine options as vLLM's keyword arguments."""

from typing import Any

from gpusched.domain.plan import PlannedPool
from gpusched.errors import InputError
from gpusched.integrations.export.flags import engine_options, parallel_options
from gpusched.integrations.export.kubernetes import dump
from gpusched.integrations.export.releases import Document, Release, pair
from gpusched.integrations.export.scheduler import needs_plug_in

_ACCELERATORS = {
    "a100_sxm": "A100",
    "h100_sxm": "H100",
    "h200_sxm": "H200",
    "b200_sxm": "B200",
    "b300_sxm": "B300",
    "gb200": "GB200",
    "gb300": "GB300",
    "l4": "L4",
    "l40s": "L40S",
    "a10g": "A10G",
    "t4": "T4",
    "v100_sxm": "V100",
    "rtx_pro_6000": "RTX-PRO-6000",
    "mi300x": "AMD-Instinct-MI300X-OAM",
}
"""Ray's names of accelerators (``ray.util.accelerators``)."""


def serve_config(parts: tuple[Release, ...], image: str | None = None) -> list[Document]:
    """Return one configuration: plain models behind one ingress, others as applications of their own.

    Raises:
        InputError: several pools of one role for a model, which Ray tells apart by id only.
    """
    plain = [part for part in parts if _plain(part)]
    own = [part for part in parts if not _plain(part)]
    applications = []
    if plain:
        configs = [_llm_config(part, _single(part)) for part in plain]
        applications.append(_application("llm", "build_openai_app", {"llm_configs": configs}))
    applications += [_own_application(part) for part in own]
    for application in applications:
        alone = len(applications) == 1
        application["route_prefix"] = "/" if alone else f"/{application['name']}"
    notes = []
    for part in parts:
        for pool in part.pools:
            if pool.gpu not in _ACCELERATORS:
                notes.append(f"pool {pool.name}: Ray has no accelerator type for {pool.gpu}")
            if needs_plug_in(pool):
                notes.append(
                    "the engines run a policy of gpusched by its scheduler for vLLM, which this version lacks"
                )
    heading = "; ".join(f"{part.model}: {part.plan.summary}" for part in parts)
    return [Document("serve", dump({"applications": applications}, heading), tuple(notes))]


def _plain(release: Release) -> bool:
    return not release.disaggregated and all(p.data_parallel_size == 1 for p in release.pools)


def _own_application(release: Release) -> dict[str, Any]:
    if release.disaggregated:
        decode, prefill = pair(release, "Ray Serve LLM")
        arguments = {
            "prefill_config": _llm_config(release, prefill),
            "decode_config": _llm_config(release, decode),
        }
        return _application(release.name, "build_pd_openai_app", arguments)
    config = {"llm_config": _llm_config(release, _single(release))}
    return _application(release.name, "build_dp_openai_app", config)


def _single(release: Release) -> PlannedPool:
    if len(release.pools) > 1:
        raise InputError(
            f"Ray Serve LLM runs one kind of replica a model; the plan has {len(release.pools)} "
            f"pools of {release.model} (--to vllm, --to dynamo and --to kserve can express it)"
        )
    return release.pools[0]


def _application(name: str, builder: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "route_prefix": "/",
        "import_path": f"ray.serve.llm:{builder}",
        "args": arguments,
    }


def _llm_config(release: Release, pool: PlannedPool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_loading_config": {
            "model_id": release.model,
            "model_source": release.checkpoint,
        },
    }
    if pool.gpu in _ACCELERATORS:
        config["accelerator_type"] = _ACCELERATORS[pool.gpu]
    config["deployment_config"] = {"num_replicas": pool.replicas}
    config["engine_kwargs"] = parallel_options(pool) | engine_options(release, pool)
    return config
