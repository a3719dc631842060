"""The engines of a plan, numbered."""

from dataclasses import dataclass

from gpusched.domain.gateway import EngineAddress
from gpusched.domain.plan import Plan, PlannedPool
from gpusched.errors import InputError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One live engine of a plan."""

    index: int
    address: EngineAddress
    pool: PlannedPool
    model: str
    """The plan's, or of the cascade's stage."""


class Endpoints:
    """All engines that a gateway has had. An index always means the same address."""

    def __init__(self, plan: Plan) -> None:
        self.all: list[Endpoint] = []
        """By index, those that have left the plan included."""
        self.live: list[int] = []
        """Indices of those in the present plan."""
        self.update(plan)

    def update(self, plan: Plan) -> None:
        """Take the engines of a plan; those with a known address keep their index.

        Raises:
            InputError: no pool has endpoints, or two engines have the same address.
        """
        found = _addresses(plan)
        known = {endpoint.address.url: endpoint.index for endpoint in self.all}
        live = []
        for address, pool, model in found:
            index = known.get(address.url, len(self.all))
            endpoint = Endpoint(index, address, pool, model)
            if index == len(self.all):
                self.all.append(endpoint)
            else:
                self.all[index] = endpoint
            live.append(index)
        self.live = live


def _addresses(plan: Plan) -> list[tuple[EngineAddress, PlannedPool, str]]:
    if plan.cascade is not None:
        pools = [(pool, stage.model) for stage in plan.cascade.stages for pool in stage.pools]
    else:
        pools = [(pool, plan.model) for pool in plan.pools]
    found = [(address, pool, model) for pool, model in pools for address in pool.endpoints]
    if not found:
        raise InputError(
            "the plan names no live engine; give its pools 'endpoints: [http://HOST:PORT, ...]' "
            "or pass --endpoint URL"
        )
    seen: dict[str, str] = {}
    for address, pool, _ in found:
        if address.url in seen:
            raise InputError(
                f"pool {pool.name}: endpoint {address.url} is already in pool {seen[address.url]}; "
                "list each engine once"
            )
        seen[address.url] = pool.name
    return found
