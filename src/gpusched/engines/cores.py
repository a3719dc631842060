"""Processors for a measurement: the model's process alone on one, everything else on the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROC = Path("/proc")


@contextmanager
def own_core(server_pid: int, worker: str = "EngineCore") -> Iterator[bool]:
    """Give a server's process of the given name a processor of its own while the block runs, and the
    others to the rest of the server and to this process; say whether that could be done.

    It cannot on other systems than Linux, or with a single processor.
    """
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        yield False
        return
    before = os.sched_getaffinity(0)
    core = min(before)
    try:
        found = False
        for pid in (server_pid, *descendants(server_pid)):
            alone = worker in _name(pid)
            found = found or alone
            _bind(pid, {core} if alone else before - {core})
        _bind(os.getpid(), before - {core})
        yield found
    finally:
        _bind(os.getpid(), before)


class Neighbours:
    """How much of the machine others use, from its making on: all processors' work less that of this
    process, a server and what both have started."""

    def __init__(self, server_pid: int) -> None:
        self._own = (os.getpid(), server_pid)
        self._start = self._read()

    def share(self) -> float | None:
        """Return the share of the processors' time that others took; None where it cannot be told."""
        if self._start is None or (now := self._read()) is None:
            return None
        all_ticks, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        return min(max((busy - own) / max(all_ticks, 1), 0.0), 1.0)

    def _read(self) -> tuple[int, int, int] | None:
        try:
            ticks = [int(n) for n in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        own = 0
        for pid in {p for root in self._own for p in (root, *descendants(root))}:
            try:
                fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            own += int(fields[11]) + int(fields[12])
        idle = ticks[3] + ticks[4]
        return sum(ticks), sum(ticks) - idle, own


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have."""
    found = []
    for task in _tasks(pid):
        try:
            children = (PROC / str(pid) / "task" / task / "children").read_text()
        except OSError:
            continue
        for child in map(int, children.split()):
            found += [child, *descendants(child)]
    return found


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(PROC / str(pid) / "task")
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _bind(pid: int, cores: set[int]) -> None:
    for task in _tasks(pid):
        try:
            os.sched_setaffinity(int(task), cores)
        except OSError:
            continue
