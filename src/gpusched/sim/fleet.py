"""What is simulated: pools of replicas, the settings of their engines, the link between pools."""

from dataclasses import dataclass
from typing import Literal

from gpusched.errors import InputError
from gpusched.policies.admission.policy import (
    GATED,
    STAGGERED,
    AdmissionPolicy,
    admission_policy,
)
from gpusched.policies.batching.discipline import CHUNKED, GROUPED, OPEN, STATIC, discipline
from gpusched.policies.batching.order import FCFS
from gpusched.policies.routing.choice import PER_ROUND
from gpusched.policies.routing.policy import RoutingPolicy, routing_policy
from gpusched.timing.compiled import CompiledTiming
from gpusched.timing.measured import NO_OVERHEAD, RequestOverhead

Role = Literal["mixed", "prefill", "decode"]


def apart_policy(routing: str, batching: str) -> str | None:
    """Return which of the policies works only where prefill and decode have pools of their own."""
    if routing_policy(routing).kind == PER_ROUND:
        return f"routing {routing}"
    return f"batching {batching}" if discipline(batching).window else None


@dataclass(frozen=True, slots=True)
class Pool:
    """Replicas of one kind with one role.

    A pipeline-parallel replica keeps ``pipeline_stages`` micro-batches in flight. Each is a *lane*
    with its own batch and an equal share of the replica's KV cache and sequences; since every lane
    keeps each stage busy for at most one part in ``pipeline_stages`` of the time, lanes never wait
    for one another in the fluid limit, and ``timing`` gives the latency of a lane's iteration
    through all stages.

    Under data-parallel attention a replica has ``data_parallel`` *units* that share the experts: each
    has its own batch and KV cache, and their iterations start and end together. See ``lockstep``.
    """

    name: str
    timing: CompiledTiming
    kv_blocks: int
    """KV blocks of one replica, or of each of its data-parallel units."""
    replicas: int = 1
    role: Role = "mixed"
    batching: str = "vllm"
    """A discipline of ``policies.batching``, or a user's own."""
    block_tokens: int = 16
    """A power of two."""
    max_num_seqs: int = 256
    """Of a replica or data-parallel unit, as are the tokens below."""
    max_num_batched_tokens: int = 2048
    prefix_caching: bool = True
    """Takes effect where the trace has block ids."""
    pipeline_stages: int = 1
    data_parallel: int = 1
    """Units of a replica that step together."""
    gpus_per_replica: int = 1
    startup_s: float = 0.0
    """No replica of the pool starts an iteration before this time."""

    def __post_init__(self) -> None:
        for field in (
            "kv_blocks", "replicas", "max_num_seqs", "max_num_batched_tokens", "data_parallel",
        ):  # fmt: skip
            if getattr(self, field) < 1:
                raise InputError(
                    f"pool {self.name}: {field} must be at least 1, got {getattr(self, field)}"
                )
        if self.block_tokens < 1 or self.block_tokens & (self.block_tokens - 1):
            raise InputError(
                f"pool {self.name}: block size must be a power of two, got {self.block_tokens}"
            )
        chosen = discipline(self.batching)
        plain = chosen.gate == OPEN and not chosen.preemptive and chosen.forming != STATIC
        if chosen.window and self.role != "prefill":
            raise InputError(
                f"pool {self.name}: {chosen.name} batching orders prompts on prefill replicas, and this "
                f"pool's role is {self.role}; choose vllm, or prefill and decode pools"
            )
        if self.role == "prefill" and not plain:
            raise InputError(
                f"pool {self.name}: prefill replicas cannot use {self.batching} batching; choose a "
                "policy without gate and preemption, such as vllm, prefill-first or sjf"
            )
        if self.role == "decode" and self.batching != "vllm":
            raise InputError(
                f"pool {self.name}: decode replicas cannot use {self.batching} batching; choose vllm"
            )
        if chosen.forming == CHUNKED and self.max_num_batched_tokens < self.max_num_seqs:
            raise InputError(
                f"pool {self.name}: max_num_batched_tokens ({self.max_num_batched_tokens}) must be "
                f"at least max_num_seqs ({self.max_num_seqs}); raise the one or lower the other"
            )
        if self.data_parallel > 1 and chosen.gate == GROUPED:
            raise InputError(
                f"pool {self.name}: {self.batching} batching holds requests back by time and cannot "
                "run on data-parallel units, which step together; choose a policy such as vllm or sjf"
            )
        if self.pipeline_stages > min(self.max_num_seqs, self.kv_blocks):
            raise InputError(
                f"pool {self.name}: {self.pipeline_stages} pipeline stages need as many sequences"
                " and KV blocks"
            )

    @property
    def lanes(self) -> int:
        """Batches in the pool: one for each micro-batch of each unit of each replica."""
        return self.replicas * self.pipeline_stages * self.data_parallel


@dataclass(frozen=True, slots=True)
class KvLink:
    """Transfer of a prompt's KV cache from a prefill replica to a decode replica.

    Each replica sends one transfer at a time and receives one at a time, in order of request.
    """

    latency_s: float = 0.0
    token_s: float = 0.0
    """Seconds per token of KV cache."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Pools that serve one trace: all ``mixed``, or ``prefill`` or ``mixed`` ones with ``decode``.

    A mixed replica keeps a request whose prompt it has computed when the decode pools have no seat
    for it.
    """

    pools: tuple[Pool, ...]
    link: KvLink = KvLink()
    routing: str = "least-tokens"
    """A policy of ``policies.routing``, or a user's own."""
    decode_routing: str | None = None
    """The same, for the choice of a decode replica; ``routing`` if not given."""
    admission: str = "none"
    """A policy of ``policies.admission``, or a user's own."""
    overhead: RequestOverhead = NO_OVERHEAD
    """What requests spend outside engines; routers see them after it."""

    def __post_init__(self) -> None:
        roles = {pool.role for pool in self.pools}
        if roles not in ({"mixed"}, {"prefill", "decode"}, {"mixed", "decode"}):
            raise InputError(
                "a fleet has mixed pools, alone or with decode pools, or prefill pools with decode "
                "pools; got roles " + (", ".join(sorted(roles)) or "none")
            )
        for pool in self.pools:
            chosen = discipline(pool.batching)
            if len(roles) > 1 and (chosen.forming == STATIC or chosen.gate == GROUPED):
                raise InputError(
                    f"pool {pool.name}: {pool.batching} batching keeps a batch or group together and "
                    "cannot hand requests to a decode pool; choose a policy such as vllm or mc-sf"
                )
        routing, decode_routing, admission = self.policies
        if PER_ROUND in (routing.kind, decode_routing.kind):
            self._check_rounds(roles, routing, decode_routing, admission)
        by_deadline = [p.name for p in self.pools if discipline(p.batching).window]
        coupled = [p.name for p in self.pools if p.data_parallel > 1]
        if by_deadline and (coupled or admission.kind in (STAGGERED, GATED)):
            other = f"admission {admission.name}" if not coupled else "data-parallel units"
            raise InputError(
                f"pool {by_deadline[0]}: on-time batching does not go with {other}; choose vllm"
            )
        for pool in self.pools:
            chosen = discipline(pool.batching)
            held = chosen.order != FCFS or chosen.gate != OPEN or chosen.forming == STATIC
            if admission.kind in (STAGGERED, GATED) and held:
                raise InputError(
                    f"pool {pool.name}: admission {admission.name} holds requests before the engines "
                    f"and cannot go with {pool.batching} batching; choose vllm or prefill-first"
                )

    def _check_rounds(
        self,
        roles: set[Role],
        routing: RoutingPolicy,
        decode_routing: RoutingPolicy,
        admission: AdmissionPolicy,
    ) -> None:
        if roles != {"prefill", "decode"}:
            raise InputError(
                f"routing: {routing.name} places the rounds of sessions on prefill and decode pools; "
                "the fleet has " + " and ".join(sorted(roles)) + " ones"
            )
        if decode_routing.name != routing.name:
            raise InputError(
                f"decode_routing: {decode_routing.name} does not go with routing {routing.name}: a "
                "policy that places rounds also binds each session to a decode replica; leave "
                "decode_routing out"
            )
        if admission.name != "none":
            raise InputError(
                f"admission: {admission.name} does not go with routing {routing.name}; choose none"
            )
        for pool in self.pools:
            if pool.data_parallel > 1:
                raise InputError(
                    f"pool {pool.name}: data-parallel units, which step together, cannot take rounds "
                    f"placed by {routing.name}; set data_parallel_size to 1"
                )

    @property
    def policies(self) -> tuple[RoutingPolicy, RoutingPolicy, AdmissionPolicy]:
        """Routing, routing to decode replicas, and admission.

        Raises:
            InputError: no such policy.
        """
        decode = self.routing if self.decode_routing is None else self.decode_routing
        return (
            routing_policy(self.routing),
            routing_policy(decode),
            admission_policy(self.admission),
        )

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return sum(pool.replicas * pool.gpus_per_replica for pool in self.pools)
