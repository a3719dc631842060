"""A strict reader of Prometheus' text format, written from its description.

prometheus_client's own parser reads the text as well where that is installed.
"""

import re
from dataclasses import dataclass, field

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(,|$)')
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


@dataclass
class Sample:
    name: str
    labels: dict[str, str]
    value: float


@dataclass
class Read:
    name: str
    kind: str
    samples: list[Sample] = field(default_factory=list)


def _labels(text: str) -> dict[str, str]:
    found, at = {}, 0
    while at < len(text):
        match = LABEL.match(text, at)
        assert match, f"bad labels {text!r} at {at}"
        assert match[1] not in found, f"label {match[1]} twice"
        value = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), match[2])
        found[match[1]] = value
        at = match.end()
    return found


def parse(text: str) -> list[Read]:
    """Return the families; fail on anything the format does not allow."""
    assert text.endswith("\n")
    families: list[Read] = []
    names: set[str] = set()
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    lines = text[:-1].split("\n")
    for i, line in enumerate(lines):
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert lines[i + 1].startswith(f"# TYPE {name} "), line
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in names, f"{name} twice"
            assert kind in SUFFIXES
            assert (kind == "counter") == name.endswith("_total")
            names.add(name)
            families.append(Read(name, kind))
        else:
            match = SAMPLE.fullmatch(line)
            assert match, f"bad line {line!r}"
            family = families[-1]
            assert match[1] in {family.name + suffix for suffix in SUFFIXES[family.kind]}, line
            labels = _labels(match[2] or "")
            key = (match[1], tuple(sorted(labels.items())))
            assert key not in seen, f"{line!r} twice"
            seen.add(key)
            family.samples.append(Sample(match[1], labels, float(match[3])))
    for family in families:
        if family.kind == "histogram":
            _check_histogram(family)
    _compare(text, families)
    return families


def _check_histogram(family: Read) -> None:
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    counts = {}
    for sample in family.samples:
        of = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(of, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_count"):
            counts[of] = sample.value
    assert set(buckets) == set(counts)
    for of, rows in buckets.items():
        assert rows == sorted(rows), "edges or counts fall"
        assert [count for _, count in rows] == sorted(count for _, count in rows)
        assert rows[-1] == (float("inf"), counts[of])


def _compare(text: str, families: list[Read]) -> None:
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        return
    theirs = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert theirs == [(s.name, s.labels, s.value) for f in families for s in f.samples]
