"""Streaming of log files: complete lines once, and short tracebacks."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from perdure.dev.log_stream import LogTail, TracebackFilter

ROOT = Path("/work/shop")
HEAD = "2026-12-01T03:38:10.136674Z [error    ] Exception in Restate handler"
TRACEBACK = [
    "  | Traceback (most recent call last):",
    '  |   File "/work/shop/.venv/lib/site-packages/restate/server.py", line 210, in process',
    "  |     await context.enter()",
    "  |           ^^^^^^^^^^^^^^^",
    '  |   File "/work/shop/stock.py", line 29, in bill',
    '  |     raise RuntimeError("no price")',
    "  | RuntimeError: no price",
]


@given(st.lists(st.integers(1, 7), max_size=30))
def test_tail_returns_each_line_once(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("logs") / "a.log"
    path.write_bytes(b"before\n")
    tail, found = LogTail(path), []
    text = "".join(f"line {number}\n" for number in range(12)).encode()
    with path.open("ab", buffering=0) as log:
        for size in sizes:
            part, text = text[:size], text[size:]
            log.write(part)
            found += tail.read()
        log.write(text)
    found += tail.read()
    assert found == [f"line {number}" for number in range(12)]


def test_tail_continues_after_rotation(tmp_path):
    path = tmp_path / "a.log"
    tail = LogTail(path)
    assert tail.read() == []
    path.write_text("one\ntwo\nthree\n")
    assert tail.read() == ["one", "two", "three"]
    path.write_text("four\n")
    assert tail.read() == ["four"]


def test_show_own_frames_of_traceback_once():
    shown = TracebackFilter(ROOT)
    assert list(shown.lines([HEAD, *TRACEBACK])) == [HEAD]
    assert list(shown.lines([])) == [TRACEBACK[0], *TRACEBACK[4:]]
    assert list(shown.lines([])) == []
    again = [*shown.lines([HEAD, *TRACEBACK]), *shown.lines([])]
    assert again == [HEAD, "  RuntimeError: no price (traceback as before)"]


def test_show_whole_traceback_without_own_frames():
    foreign = [*TRACEBACK[:4], TRACEBACK[6]]
    assert [*(shown := TracebackFilter(ROOT)).lines([HEAD, *foreign]), *shown.lines([])] == [HEAD, *foreign]
