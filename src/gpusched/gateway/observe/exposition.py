"""Counters, gauges and histograms as Prometheus text (exposition format 0.0.4)."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isinf, isnan
from typing import Generic, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Edges = tuple[float, ...]


def escape(value: str) -> str:
    """Return a label's value as it stands between quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def labels(names: Sequence[str], values: Sequence[str]) -> str:
    """Return ``name="value",...`` without braces."""
    return ",".join(f'{n}="{escape(v)}"' for n, v in zip(names, values, strict=True))


def number(value: float) -> str:
    """Return a sample's value."""
    if isnan(value):
        return "NaN"
    if isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


class Histogram:
    """Counts by upper edge: an observation falls into the first bucket whose edge is no smaller."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: Edges) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Values observed."""
        return sum(self.counts)

    def samples(self, name: str, of: str, edges: Sequence[str]) -> Iterator[str]:
        """Yield the lines, ``of`` being the other labels and ``edges`` the edges as text."""
        before = of + "," if of else ""
        within = 0
        for edge, count in zip(edges, self.counts, strict=True):
            within += count
            yield f'{name}_bucket{{{before}le="{edge}"}} {within}'
        yield f"{name}_sum{{{of}}} {self.total!r}" if of else f"{name}_sum {self.total!r}"
        yield f"{name}_count{{{of}}} {within}" if of else f"{name}_count {within}"


SeriesT = TypeVar("SeriesT")


class Family(Generic[SeriesT]):
    """Series by the values of their labels, at most ``most`` of them.

    Beyond, and so against clients who make up names, all further ones share a series whose labels
    are ``other``.
    """

    def __init__(
        self, names: tuple[str, ...], make: Callable[[], SeriesT], most: int = 10_000
    ) -> None:
        self.names, self._make, self._most = names, make, most
        self._series: dict[tuple[str, ...], SeriesT] = {}

    def at(self, *values: str) -> SeriesT:
        """Return the series of these labels."""
        series = self._series.get(values)
        if series is None:
            if len(self._series) >= self._most:
                values = ("other",) * len(self.names)
            series = self._series.setdefault(values, self._make())
        return series

    def items(self) -> Iterator[tuple[str, SeriesT]]:
        """Yield each series with its labels as text."""
        for values, series in list(self._series.items()):
            yield labels(self.names, values), series

    def __len__(self) -> int:
        return len(self._series)


def header(name: str, kind: str, what: str) -> str:
    """Return the two lines before a family's samples."""
    return f"# HELP {name} {what}\n# TYPE {name} {kind}"


def plain(name: str, kind: str, what: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Yield a family of counters or gauges: labels as text and value of each."""
    yield header(name, kind, what)
    for of, value in samples:
        yield f"{name}{{{of}}} {number(value)}" if of else f"{name} {number(value)}"


def histograms(
    name: str, what: str, edges: Edges, samples: Iterable[tuple[str, Histogram]]
) -> Iterator[str]:
    """Yield a family of histograms."""
    yield header(name, "histogram", what)
    texts = [*(repr(float(edge)) for edge in edges), "+Inf"]
    for of, histogram in samples:
        yield from histogram.samples(name, of, texts)
