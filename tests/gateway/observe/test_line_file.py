import os
import signal
import subprocess
import sys
import time

import pytest

from gpusched.errors import InputError
from gpusched.gateway.observe import line_file
from gpusched.gateway.observe.line_file import LineFile


def test_lines_are_appended_in_order(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"before\n")
    lines = LineFile(path)
    for i in range(5000):
        lines.write(b"%d\n" % i)
    lines.close()
    assert path.read_bytes() == b"before\n" + b"".join(b"%d\n" % i for i in range(5000))


@pytest.mark.parametrize(
    ("left", "kept"), [(b'{"a":1}\n{"b', b'{"a":1}\n'), (b"half", b""), (b"", b""), (b"a\n", b"a\n"),
                       (b"a\n" + b"x" * 200_000, b"a\n")]
)  # fmt: skip
def test_half_a_line_of_a_crash_is_cut_off(tmp_path, left, kept):
    path = tmp_path / "log.jsonl"
    path.write_bytes(left)
    lines = LineFile(path)
    lines.write(b"next\n")
    lines.close()
    assert path.read_bytes() == kept + b"next\n"


def test_full_files_are_set_aside_and_the_oldest_go(tmp_path):
    path = tmp_path / "log.jsonl"
    for batch in range(6):
        lines = LineFile(path, max_bytes=100, keep=3)
        for i in range(9):
            lines.write(b"%04d %04d\n" % (batch, i))
        lines.close()
    kept = {p.name: p.read_bytes().splitlines() for p in tmp_path.iterdir()}
    assert set(kept) == {"log.jsonl", "log.1.jsonl", "log.2.jsonl", "log.3.jsonl"}
    for name, batch in (("log.jsonl", 5), ("log.1.jsonl", 4), ("log.3.jsonl", 2)):
        assert kept[name] == [b"%04d %04d" % (batch, i) for i in range(9)]


def test_an_unwritable_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/log\.jsonl: cannot write to it \(No such file"):
        LineFile(tmp_path / "nowhere" / "log.jsonl")


def test_a_reader_that_stalls_costs_lines_not_time(monkeypatch):
    monkeypatch.setattr(line_file, "MAX_PENDING_BYTES", 100_000)
    read, write = os.pipe()
    lines = LineFile(write)
    lines.write(b"x" * 200_000 + b"\n")
    while lines._pending_bytes:
        time.sleep(0.01)
    for _ in range(3000):
        lines.write(b"y" * 99 + b"\n")
    assert 1900 < lines.dropped < 2100
    os.close(read)
    lines.close()
    os.close(write)


def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path, monkeypatch):
    path, true_write, calls = tmp_path / "log.jsonl", os.write, []

    def write(fd, data):
        calls.append(len(data))
        if len(calls) == 1:
            return true_write(fd, bytes(data[:5]))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return true_write(fd, data)

    monkeypatch.setattr(line_file.os, "write", write)
    lines = LineFile(path)
    lines.write(b"0123456789\n")
    time.sleep(1.5 * line_file.FLUSH_S)
    assert lines.problem == "No space left on device"
    lines.write(b"after\n")
    lines.close()
    assert (path.read_bytes(), lines.dropped, lines.problem) == (b"after\n", 1, None)


def test_a_killed_process_leaves_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    script = (
        "import itertools,sys,time\n"
        "from gpusched.gateway.observe.line_file import LineFile\n"
        f"lines = LineFile({str(path)!r})\n"
        "for i in itertools.count():\n"
        "    lines.write(b'{\"n\":%d}\\n' % i)\n"
        "    if i % 500 == 0: time.sleep(0.01)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    LineFile(path).close()
    rows = path.read_bytes().splitlines()
    assert len(rows) > 100
    assert rows == [b'{"n":%d}' % i for i in range(len(rows))]
