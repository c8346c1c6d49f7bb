"""Errors and tasks of chaos runs."""

from __future__ import annotations

import asyncio

import pytest

from perdure.dev.interrupts import Interrupted
from perdure.errors import PerdureError
from tests.system.chaos.harness import cancelled_at_end, one_sentence


def test_unexpected_error_becomes_one_sentence(tmp_path):
    with pytest.raises(PerdureError) as raised, one_sentence("the chaos run", tmp_path):
        raise ExceptionGroup("two", [ExceptionGroup("inner", [OSError("no\nspace")]), ValueError("late")])
    report = tmp_path / "error.log"
    assert str(raised.value) == f"the chaos run failed: OSError: no space; the traceback is in {report}"
    assert "ValueError: late" in report.read_text()


@pytest.mark.parametrize("error", [PerdureError("the engine is missing"), Interrupted(2), asyncio.CancelledError()])
def test_expected_errors_stay_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as raised, one_sentence("the chaos run", tmp_path):
        raise error
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


async def test_tasks_end_with_their_context():
    never = asyncio.Event()
    async with cancelled_at_end() as tasks:
        tasks.add(task := asyncio.create_task(never.wait()))
        tasks.add(done := asyncio.create_task(asyncio.sleep(0)))
        await done
    assert task.cancelled()
