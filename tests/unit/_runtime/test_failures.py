"""Errors of user code: exception groups, and exceptions that are no `Exception`."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError as FuturesCancelled
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from restate.exceptions import RetryableError, SuspendedException
from restate.server_context import DisconnectedException

from perdure._runtime.failures import contained, failure_of, is_interruption
from perdure._runtime.outcomes import as_exception
from perdure.error_mapping import ErrorMapping, mapped_errors
from perdure.errors import Aborted, Cancelled, Conflict, Refused, TerminalError
from tests.support import PATIENCE

plain = st.sampled_from([ValueError, KeyError, OSError, asyncio.TimeoutError]).map(lambda kind: kind("x" * 1000))
aborting = st.sampled_from([SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]).map(lambda k: k())
terminal = st.builds(Refused, st.text(max_size=20), st.sampled_from([402, 409, 422]), st.just("declined"))
leaves = st.one_of(plain, aborting, terminal)
groups = st.recursive(
    st.lists(leaves, min_size=1, max_size=4).map(lambda errors: BaseExceptionGroup("g", errors)),
    lambda inner: st.lists(st.one_of(leaves, inner), min_size=1, max_size=4).map(lambda e: BaseExceptionGroup("g", e)),
    max_leaves=12,
)


def leaves_of(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves_of(part)]
    return [error]


@given(group=groups)
def test_group_counts_as_its_first_terminal_error(group):
    failure = failure_of(group)
    assert isinstance(failure, Exception)
    assert not isinstance(failure, BaseExceptionGroup)
    assert len(str(failure)) < 2200
    refused = [leaf for leaf in leaves_of(group) if isinstance(leaf, Refused)]
    assert isinstance(failure, TerminalError) == bool(refused)
    if refused:
        assert isinstance(failure, Refused)
        assert failure.status_code == refused[0].status_code
        assert failure.metadata == refused[0].metadata
        assert failure.message.startswith(refused[0].message)


@given(group=groups, interruption=st.sampled_from([SuspendedException(), DisconnectedException()]))
def test_interruption_in_group_interrupts(group, interruption):
    assert failure_of(BaseExceptionGroup("g", [group, interruption])) is interruption


def test_group_with_one_cause_is_its_error():
    cause = Refused("full")
    errors = [ValueError("a"), KeyError("b")]
    for error in errors:
        error.__cause__ = cause
    assert failure_of(ExceptionGroup("g", errors)) is cause


def test_group_with_incomplete_terminal_error():
    class Incomplete(TerminalError):
        def __init__(self) -> None:
            Exception.__init__(self, "incomplete")

    failure = failure_of(ExceptionGroup("g", [Incomplete(), ValueError("x")]))
    assert isinstance(failure, Incomplete)
    assert "ValueError: x" in failure.message


def test_cancel_in_group_wins():
    failure = failure_of(ExceptionGroup("g", [Refused("full"), Cancelled("cancelled")]))
    assert isinstance(failure, Cancelled)
    assert "Refused: full" in failure.message


def test_group_keeps_longest_retry_delay():
    short, long = (RetryableError("busy", 503, timedelta(seconds=seconds)) for seconds in (1, 9))
    failure = failure_of(ExceptionGroup("g", [short, long, ValueError("x")]))
    assert isinstance(failure, RetryableError)
    assert (failure.status_code, failure.retry_after) == (503, timedelta(seconds=9))


def test_open_group_among_causes():
    error = ValueError("no booking")
    error.__cause__ = ExceptionGroup("g", [Refused("full", 402, "declined")])
    failure = failure_of(error)
    assert isinstance(failure, Refused)
    error.__cause__ = ExceptionGroup("g", [KeyError("k")])
    assert failure_of(error) is error


def test_map_exceptions_of_group():
    with pytest.raises(Conflict, match="twice"), mapped_errors(ErrorMapping({KeyError: Conflict})):
        raise ExceptionGroup("g", [ExceptionGroup("h", [KeyError("twice")])])
    with pytest.raises(ValueError, match="once"), mapped_errors(ErrorMapping({KeyError: Conflict})):
        raise ExceptionGroup("g", [ValueError("once")])


def test_failing_rule_is_an_exception():
    def fail(_: KeyError) -> None:
        raise SystemExit(3)

    with pytest.raises(Aborted, match="SystemExit: 3"), mapped_errors(ErrorMapping({KeyError: fail})):
        raise KeyError("k")


@given(error=aborting)
def test_aborted_attempt_is_no_interruption(error):
    assert is_interruption(as_exception(error)) is False
    with pytest.raises(Aborted, match=type(error).__name__):
        raise as_exception(error)


IN_THREADS = {StopIteration: Aborted, asyncio.CancelledError: Aborted, SystemExit: Aborted, KeyError: KeyError}


@pytest.mark.parametrize(("raised", "expected"), [*IN_THREADS.items(), (FuturesCancelled, FuturesCancelled)])
async def test_exceptions_arrive_from_threads(raised, expected):
    def act() -> None:
        raise raised

    with pytest.raises(expected, match=None if expected is raised else raised.__name__):
        await asyncio.wait_for(contained(act), PATIENCE)


async def test_action_cannot_cancel_its_caller():
    async def act() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    with pytest.raises(Aborted, match="CancelledError"):
        await contained(act)
    await asyncio.sleep(0)
