"""From a plan to the lanes of live engines."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpusched.domain.gateway import EngineAddress, GatewaySettings
from gpusched.domain.placement import FRONT
from gpusched.domain.plan import Plan, PlannedPool
from gpusched.errors import InputError
from gpusched.gateway.dispatch.fleet import Engine, Fleet, Group, Lane
from gpusched.policies.routing.live import LiveRouter, WeightedRouter
from gpusched.policies.routing.pipelines import PIPELINE_ROUTING
from gpusched.policies.routing.policy import ROUTING, RoutingPolicy, routing_policy

WEIGHTED = ("weighted", "iwrr")
"""Names of interleaved weighted round-robin, by the engines' weights."""


@dataclass(frozen=True, slots=True)
class _Member:
    """An address and what the plan says about the engine there."""

    address: EngineAddress
    pool: str
    role: str
    seats: int
    dialect: str
    weight: float | None


def groups_of(plan: Plan, fleet: Fleet, seed: int = 0) -> list[Group]:
    """Return the lanes of a plan's engines, known ones in ``fleet`` taken over by their address.

    Raises:
        InputError: the plan names no live engine where it needs one, an address twice, a policy
            that has no live form, or a file that cannot be read.
    """
    if plan.blocks is not None:
        raise InputError(
            "a plan of blocks has no servers that speak OpenAI's protocol; serve a plan of pools, "
            "layers or a cascade"
        )
    _build(plan, Fleet(), seed)  # so that a plan with a mistake changes nothing
    return _build(plan, fleet, seed)


def _build(plan: Plan, fleet: Fleet, seed: int) -> list[Group]:
    settings = plan.gateway or GatewaySettings()
    known = {engine.url: engine for engine in fleet.engines if engine.lane is not None}
    builder = _Builder(fleet, known, {}, seed)
    if plan.layers is not None:
        return [builder.layers_group(plan, settings)]
    if plan.cascade is None:
        return [builder.pools_group(plan, plan.pools, plan.model, _aliases(settings))]
    stages = plan.cascade.stages
    alias_of = next((i for i, s in enumerate(stages) if s.model == plan.model), len(stages) - 1)
    return [
        builder.pools_group(
            plan, stage.pools, stage.model, _aliases(settings) if i == alias_of else ()
        )
        for i, stage in enumerate(stages)
    ]


def _aliases(settings: GatewaySettings) -> tuple[str, ...]:
    return (settings.served_model_name,) if settings.served_model_name else ()


@dataclass(frozen=True, slots=True)
class _Builder:
    fleet: Fleet
    known: Mapping[str, Engine]
    claimed: dict[str, str]
    seed: int

    def pools_group(
        self, plan: Plan, pools: Iterable[PlannedPool], model: str, aliases: tuple[str, ...]
    ) -> Group:
        pools = tuple(pools)
        entry = [m for p in pools if p.role != "decode" for m in _members(p)]
        decode = [m for p in pools if p.role == "decode" for m in _members(p)]
        apart = any(pool.role == "decode" for pool in pools)
        for members, part in ((entry, "enter"), (decode, "go on to decode")):
            if not members and (part == "enter" or apart):
                raise InputError(
                    f"no pool of {model} in which requests {part} has endpoints; add to a pool, for "
                    "each live engine: endpoints: [http://HOST:PORT, ...]"
                )
        routing = plan.decode_routing or plan.routing
        return Group(
            model, aliases,
            self._lane(entry, plan.routing),
            self._lane(decode, routing) if apart else None,
        )  # fmt: skip

    def layers_group(self, plan: Plan, settings: GatewaySettings) -> Group:
        layers = plan.layers
        assert layers is not None
        flow = dict.fromkeys((placed.node for placed in layers.nodes), 0.0)
        for planned in layers.flows:
            if planned.ends[0] == FRONT and planned.ends[1] in flow:
                flow[planned.ends[1]] += planned.tokens_per_s
        members = []
        for placed in layers.nodes:
            if flow[placed.node] <= 0:
                continue
            if placed.endpoint is None:
                raise InputError(
                    f"layers: requests enter at node {placed.node}; give its address, such as "
                    "endpoint: http://HOST:PORT"
                )
            weight = placed.endpoint.weight or flow[placed.node]
            members.append(
                _Member(placed.endpoint, placed.node, "mixed", 256, placed.endpoint.dialect, weight)
            )
        if not members:
            raise InputError("layers: no flow enters at any node")
        return Group(plan.model, _aliases(settings), self._lane(members, layers.routing))

    def _lane(self, members: list[_Member], routing: str) -> Lane:
        router = _router(routing, members, self.seed)
        return Lane([self._engine(member) for member in members], router)

    def _engine(self, member: _Member) -> Engine:
        url = member.address.url
        if url in self.claimed:
            raise InputError(
                f"pool {member.pool}: {url} is an endpoint of pool {self.claimed[url]} already"
            )
        self.claimed[url] = member.pool
        engine = self.known.get(url)
        if engine is None:
            index = len(self.fleet.engines)
            name = url.partition("://")[2]
            engine = Engine(index, name, member.pool, url)
            self.fleet.engines.append(engine)
        engine.pool, engine.role = member.pool, member.role
        engine.dialect = member.dialect
        engine.api_key = _key(member.address.api_key_file)
        engine.running_seats = member.seats
        engine.seats = 2 * member.seats
        return engine


def _members(pool: PlannedPool) -> list[_Member]:
    return [
        _Member(
            address, pool.name, pool.role, pool.engine.max_num_seqs, address.dialect, address.weight
        )
        for address in pool.endpoints
    ]


def _router(text: str, members: list[_Member], seed: int) -> LiveRouter:
    name = text.partition("+")[0]
    if name in WEIGHTED:
        plain = RoutingPolicy(name, "in proportion to weights", ROUTING["least-tokens"].kind)
        return WeightedRouter(plain, [member.weight or 1.0 for member in members], seed)
    if name == "shortest-queue":
        return LiveRouter(ROUTING["least-requests"], len(members), seed)
    if name in PIPELINE_ROUTING and name not in ROUTING:
        raise InputError(f"routing {name} has no live form; choose iwrr, random or shortest-queue")
    return LiveRouter(routing_policy(text), len(members), seed)


def _key(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        key = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"api_key_file {file}: cannot read it ({reason})") from None
    if not key or not key.isprintable() or not key.isascii():
        raise InputError(f"api_key_file {file}: expected one line of plain text, the key")
    return key.encode()
