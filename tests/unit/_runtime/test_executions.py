"""Executions of one invocation ID."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.engine_retries import EngineRetries
from perdure._runtime.executions import identify


async def receive() -> Any:
    raise AssertionError


def start(entries: int, count: int = 0) -> EngineRetries:
    attempt = EngineRetries(receive)
    attempt.entries, attempt.count = entries, count
    return attempt


attempts = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6)


@given(first=attempts, second=attempts)
def test_reused_key_starts_new_execution(first, second):
    """Each execution begins with the input alone; its journal only grows."""
    invocation = f"inv_{uuid4()}"
    found = []
    for growth in (first, second):
        entries, execution = 1, {identify(invocation, start(1))}
        for more, count in growth:
            entries += more
            execution.add(identify(invocation, start(entries, count if more == 0 and entries > 1 else count + 1)))
        found.append(execution)
    assert [len(execution) for execution in found] == [1, 1]
    assert not found[0] & found[1]


def test_shorter_journal_starts_new_execution():
    invocation = f"inv_{uuid4()}"
    known = identify(invocation, start(5))
    assert identify(invocation, start(3, count=2)) != known


def test_unknown_start_keeps_execution():
    invocation = f"inv_{uuid4()}"
    known = identify(invocation, None)
    assert identify(invocation, start(0)) == identify(invocation, None) == known
    attempt = start(1)
    assert identify(invocation, attempt) == identify(invocation, attempt) != known
