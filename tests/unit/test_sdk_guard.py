"""What the guard around the SDK's context covers; an upgrade of the SDK that adds something is noticed here."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from restate.exceptions import SdkInternalException, SuspendedException
from restate.server_context import (
    DisconnectedException,
    ServerInvocationContext,
)
from restate.vm import VMWrapper

from perdure._runtime import sdk, sealing
from perdure._runtime.run_scope import inside_run
from perdure._runtime.waiting import has_own_cancel
from perdure.errors import PerdureTerminalError, TerminalError

# What the SDK itself does with the journal: at the beginning and end of an attempt, and around a run.
OF_THE_SDK = {
    "get_response_head",
    "is_completed",
    "is_ready_to_execute",
    "is_replaying",
    "notify_error",
    "notify_input",
    "notify_input_closed",
    "propose_run_completion_failure",
    "propose_run_completion_success",
    "propose_run_completion_transient",
    "propose_run_completion_transient_with_delay_override",
    "sys_end",
    "sys_input",
    "sys_write_output_failure",
    "sys_write_output_success",
    "take_output",
}


def test_each_way_to_the_journal_is_closed_inside_a_run_or_known_to_be_the_sdks_own():
    ways = {name for name, _ in inspect.getmembers(VMWrapper, inspect.isfunction) if not name.startswith("_")}
    assert ways == OF_THE_SDK | set(sdk._COMMANDS)


@pytest.mark.parametrize("vm", [VMWrapper, sealing._SealedVM])
@pytest.mark.parametrize("name", sdk._COMMANDS)
def test_guarded_operations_refuse_inside_run(name: str, vm: type[VMWrapper]):
    nothing: Any = object.__new__(sdk._guarded(vm))  # no journal: getting as far as that would fail otherwise
    with inside_run("charge"), pytest.raises(PerdureTerminalError, match="was used inside the run 'charge'"):
        getattr(nothing, name)()


def test_a_context_is_guarded_once_and_stays_the_sdks():
    context: Any = object.__new__(ServerInvocationContext)
    context.vm = object.__new__(VMWrapper)
    sdk.guard(context)
    guarded = type(context)
    sdk.guard(context)
    assert type(context) is guarded
    assert isinstance(context, ServerInvocationContext)
    assert isinstance(context.vm, VMWrapper)


def wrapping(cause: BaseException) -> Exception:
    error = ValueError("caught everything")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SuspendedException(), True),
        (SdkInternalException(), True),
        (DisconnectedException(), True),
        (wrapping(SuspendedException()), True),
        (wrapping(wrapping(DisconnectedException())), True),
        (ValueError("x"), False),
        (TerminalError("x"), False),
        (wrapping(TerminalError("x")), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_interruption_is_told_from_a_failure(error: BaseException, expected: bool):
    assert sdk.is_interruption(error) is expected


def test_errors_that_cause_themselves_are_looked_at_once():
    final, transient = TerminalError("x"), ValueError("y")
    final.__cause__, transient.__cause__ = final, transient
    for error in (final, transient):
        assert not sdk.is_interruption(error)
        assert not has_own_cancel(error)
