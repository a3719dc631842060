"""Lines written by a thread of their own, so that a slow disk or reader never holds up the loop."""

import os
import threading
from collections import deque
from pathlib import Path

from gpusched.errors import InputError

FLUSH_S = 0.5
MAX_PENDING_BYTES = 32_000_000


class LineFile:
    """Appends whole lines to a file, rotated by size, or to an open descriptor.

    ``write`` only queues. What a crash can lose is the last half second; what it cannot do is leave
    half a line in the middle: a batch that was cut short is cut off again, now or when the file is
    opened next. Beyond 32 MB waiting, lines are dropped and counted.
    """

    def __init__(
        self, target: str | Path | int, *, max_bytes: int = 1_000_000_000, keep: int = 5
    ) -> None:
        """``keep`` full files stay beside the current one: ``log.1.jsonl`` is the newest of them.

        Raises:
            InputError: the file cannot be opened for writing.
        """
        self._path = None if isinstance(target, int) else Path(target)
        self._max_bytes, self._keep = max_bytes, keep
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self.dropped = 0
        """Lines for which there was no room, or that could not be written."""
        self.problem: str | None = None
        """What went wrong when last written, if anything did."""
        self._size = 0
        if isinstance(target, int):
            self._fd = target
        else:
            self._open()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpusched-lines", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue a line, its newline included."""
        if self._pending_bytes > MAX_PENDING_BYTES:
            self.dropped += 1
            return
        self._pending_bytes += len(line)
        self._pending.append(line)

    def close(self) -> None:
        """Write what waits, for at most two seconds, and stop."""
        self._stop.set()
        self._thread.join(timeout=2.0)
        if self._path is not None and not self._thread.is_alive():
            os.close(self._fd)

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        while count := len(self._pending):
            lines = [self._pending.popleft() for _ in range(min(count, 10_000))]
            batch = b"".join(lines)
            self._pending_bytes -= len(batch)
            try:
                if self._path is not None and self._size and (
                    self._size + len(batch) > self._max_bytes
                ):  # fmt: skip
                    self._rotate()
                self._append(batch)
                self.problem = None
            except OSError as error:
                self.dropped += len(lines)
                self.problem = error.strerror or str(error)

    def _append(self, batch: bytes) -> None:
        view, begun = memoryview(batch), 0
        try:
            while begun < len(view):
                begun += os.write(self._fd, view[begun:])
        except OSError:
            if self._path is not None and begun:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - begun)
            raise
        self._size += len(batch)

    def _open(self) -> None:
        assert self._path is not None
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
            self._size = _cut_half_line(self._fd)
        except OSError as error:
            raise InputError(f"{self._path}: cannot write to it ({error.strerror})") from None

    def _rotate(self) -> None:
        """Set the full file aside as number 1, the others one further, and begin another."""
        assert self._path is not None
        names = [
            self._path.with_name(f"{self._path.stem}.{i}{self._path.suffix}")
            for i in range(1, self._keep + 1)
        ]
        for older, newer in zip(reversed(names), reversed([self._path, *names[:-1]]), strict=True):
            if newer.exists():
                newer.replace(older)
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        self._size = 0


def _cut_half_line(fd: int) -> int:
    """Cut off what follows the last newline, as a crash leaves it; return the size then."""
    size = end = os.fstat(fd).st_size
    while end:
        begin = max(end - 65_536, 0)
        newline = os.pread(fd, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end < size:
        os.ftruncate(fd, end)
    return end
