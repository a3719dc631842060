"""Names of the models that the engines serve."""

import time
from collections.abc import Sequence

import orjson

from gpusched.gateway.dispatch.fleet import Engine, Group


class Models:
    """From a model's name to the group of engines that serve it.

    Engines' own names count, the plan's name and its alias. While an engine of a group has not told
    its names, a name that is not known is taken to be one of that group's.
    """

    def __init__(self) -> None:
        self._group_of: dict[str, int] = {}
        self._names: list[str] = []
        self._untold = -1
        self._created = int(time.time())
        self.longest_tokens: int | None = None
        """Longest prompt that any engine takes; None while one has not said."""

    def learn(self, groups: Sequence[Group]) -> None:
        """Take in the groups and what their engines have told."""
        known: dict[str, int] = {}
        self._untold = -1
        contexts: list[int | None] = []
        for number, group in enumerate(groups):
            engines = [engine for lane in group.lanes for engine in lane.engines]
            contexts += [engine.context_tokens for engine in engines]
            for engine in engines:
                for name in engine.models or ():
                    known.setdefault(name, number)
            if self._untold < 0 and any(engine.models is None for engine in engines):
                self._untold = number
        self._names = list(known)
        for number, group in enumerate(groups):
            for name in (*group.aliases, group.model):
                if known.setdefault(name, number) == number and name in group.aliases:
                    self._names.append(name)
        self._names = list(dict.fromkeys(self._names)) or [group.model for group in groups]
        self._group_of = known
        told = [tokens for tokens in contexts if tokens is not None]
        self.longest_tokens = max(told) if contexts and len(told) == len(contexts) else None

    def group_of(self, name: str) -> int:
        """Return the number of the group that serves a model; -1 if none does."""
        return self._group_of.get(name, self._untold)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that clients are shown."""
        return tuple(self._names)

    def document(self) -> bytes:
        """Return the answer to ``GET /v1/models``."""
        return orjson.dumps(
            {
                "object": "list",
                "data": [
                    {
                        "id": name,
                        "object": "model",
                        "created": self._created,
                        "owned_by": "gpusched",
                    }
                    for name in self._names
                ],
            }
        )


def renamed(body: bytes, engine: Engine, model: str) -> bytes:
    """Return a body for an engine: as it is, unless it asks for the model by a name that only this
    gateway knows."""
    if engine.models is None or model in engine.models or not engine.models:
        return body
    document = orjson.loads(body)
    document["model"] = engine.models[0]
    return orjson.dumps(document)
