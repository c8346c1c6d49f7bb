"""Coverage of the context's guard. Detects operations that an upgrade of the SDK adds."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from restate.exceptions import SdkInternalException, SuspendedException
from restate.server_context import (
    DisconnectedException,
    ServerInvocationContext,
)
from restate.vm import VMWrapper

from perdure._runtime import sdk, sealing
from perdure._runtime.failures import is_interruption
from perdure._runtime.run_scope import inside_run
from perdure._runtime.waiting import has_own_cancel
from perdure.errors import PerdureTerminalError, TerminalError

# Operations of the SDK itself, at the start and end of an attempt and around a run.
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


def test_guard_covers_all_journal_operations():
    ways = {name for name, _ in inspect.getmembers(VMWrapper, inspect.isfunction) if not name.startswith("_")}
    assert ways == OF_THE_SDK | set(sdk._COMMANDS)


@pytest.mark.parametrize("vm", [VMWrapper, sealing._SealedVM])
@pytest.mark.parametrize("name", sdk._COMMANDS)
def test_guarded_operations_refuse_inside_run(name: str, vm: type[VMWrapper]):
    nothing: Any = object.__new__(sdk._guarded(vm))  # without a journal: an unguarded operation would fail
    with inside_run("charge"), pytest.raises(PerdureTerminalError, match="was used inside the run 'charge'"):
        getattr(nothing, name)()


def test_guard_context_once():
    context: Any = object.__new__(ServerInvocationContext)
    context.vm = object.__new__(VMWrapper)
    context.invocation = SimpleNamespace(invocation_id="inv_1", key="", headers=[], input_buffer=b"")
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
def test_distinguish_interruption_from_failure(error: BaseException, expected: bool):
    assert is_interruption(error) is expected


def test_visit_cyclic_causes_once():
    final, transient = TerminalError("x"), ValueError("y")
    final.__cause__, transient.__cause__ = final, transient
    for error in (final, transient):
        assert not is_interruption(error)
        assert not has_own_cancel(error)
