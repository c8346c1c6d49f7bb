"""External signals (awakeables) and internal signals (durable promises of a workflow).

Answers to external signals are not authenticated. The engine's ingress accepts them from every caller that knows the
signal's ID, which can be derived from the invocation's ID. Verify an answer with ``check``, or use it only as a wake-up
and read the result from its owner with a call. Rejections are not authenticated either; repeat the request after one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeAlias, TypeVar, cast

import restate
from restate.serde import BytesSerde

from perdure._runtime import sdk
from perdure._runtime.invocation_ids import check_signal_id
from perdure._runtime.run_scope import refuse_inside_run
from perdure._runtime.serdes import CheckedSerde, serde_for, type_of
from perdure._runtime.time_scale import scaled
from perdure.errors import CODE_KEY, InvalidInput, PerdureTerminalError, Refused, UnreadableState
from perdure.observability.activities import ActivityKind, activity

T = TypeVar("T")

_bytes = BytesSerde()

Check: TypeAlias = Callable[[T], bool]
"""Tells whether an answer is authentic. Must be deterministic, because replays repeat it."""

WorkflowContexts = restate.WorkflowContext | restate.WorkflowSharedContext


class AnswerSerde(CheckedSerde[T], Generic[T]):
    """Reads the answer to an external signal.

    An answer of another type is a terminal error: it is in the journal, so a retry would read it again.

    Args:
        type_: The answer's type.
        check: Tells whether an answer is authentic.
    """

    def __init__(self, type_: type[T], check: Check[T] | None = None) -> None:
        super().__init__(type_)
        self._check = check

    def deserialize(self, buf: bytes) -> T | None:
        """Return the answer; raise a terminal error if it does not match the type or fails the check."""
        answer = super().deserialize(buf)
        if self._check is not None and self._check(cast("T", answer)) is not True:
            raise Refused(
                "the answer to an external signal failed its check, so it was discarded; a signal accepts one answer: "
                "create a new signal",
                403,
                "unproved_answer",
            )
        return answer

    def unreadable(self, name: str, found: InvalidInput) -> Exception:
        """Return a terminal 400 that names the field."""
        message = f"the answer to an external signal does not match {name}: {found.message}"
        return InvalidInput(message, metadata=found.metadata)


class _PromiseSerde(CheckedSerde[T], Generic[T]):
    """Reads the value of an internal signal.

    The workflow's own code wrote the value, so another deployment can fix a mismatch. The main handler is retried until
    then; a shared handler fails at once.
    """

    def __init__(self, type_: type[T], handler: sdk.HandlerInfo, name: str) -> None:
        super().__init__(type_)
        self._handler = handler
        self._name = name

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON."""
        return self._inner.write(obj, f"signal '{self._name}'")

    def unreadable(self, name: str, found: InvalidInput) -> Exception:
        """Return an error that names handler, signal and type."""
        message = (
            f"{self._handler} cannot read signal '{self._name}' as {name}: {found.message}. Deploy code that reads it"
        )
        if self._handler.writes_state:
            return UnreadableState(message)
        metadata = {CODE_KEY: "unreadable_signal", "handler": str(self._handler), "signal": self._name}
        return PerdureTerminalError(message, metadata=metadata)


class ExternalSignal(Generic[T]):
    """An awakeable: pass its ID to another system, then wait for the result.

    Args:
        id_: The awakeable's ID.
        future: The SDK's future, for `restate.select`.
    """

    def __init__(self, id_: str, future: restate.RestateDurableFuture[T]) -> None:
        self.id = id_
        self.future = future

    async def result(self) -> T:
        """Wait for the answer.

        Raises:
            InvalidInput: The answer does not match the type. Terminal, 400.
            Refused: The answer failed the signal's check. Terminal, 403, with the code ``unproved_answer``.
            TerminalError: The signal was rejected.
            Cancelled: This invocation was cancelled.
        """
        refuse_inside_run("an external signal")
        return await self.future


class InternalSignal(Generic[T]):
    """A durable promise of a workflow. All handlers of the workflow's key can complete it or wait for it.

    Args:
        promise: The SDK's promise.
    """

    def __init__(self, promise: restate.DurablePromise[T]) -> None:
        self._sdk_promise = promise

    @property
    def _promise(self) -> restate.DurablePromise[T]:
        refuse_inside_run("an internal signal")
        return self._sdk_promise

    @property
    def future(self) -> restate.RestateDurableFuture[T]:
        """The SDK's future of the value, for `restate.select`. Each access adds a journal entry."""
        return self._promise.value()

    async def result(self) -> T:
        """Wait for the value.

        Raises:
            TerminalError: The promise was rejected.
            Cancelled: This invocation was cancelled.
        """
        return await self._promise.value()

    async def peek(self) -> T | None:
        """Return the value, or None if the promise is not completed."""
        return await self._promise.peek()

    async def resolve(self, value: T) -> None:
        """Complete the promise. A second completion fails."""
        await self._promise.resolve(value)

    async def reject(self, reason: str, code: int = 500) -> None:
        """Fail the promise: waiting handlers get a terminal error with this reason and HTTP status, 400 to 599."""
        await self._promise.reject(reason, code)


def wait_for_external_signal(
    ctx: restate.Context, type_: type[T], *, check: Check[T] | None = None
) -> ExternalSignal[T]:
    """Create a signal that another system answers.

    Without a check, the answer is not authenticated.

    Example:
        signal = wait_for_external_signal(ctx, Receipt, check=lambda receipt: verify(receipt.body, receipt.signature))

    Args:
        ctx: The handler's context.
        type_: The answer's type.
        check: Tells whether an answer is authentic, for example by its signature. A deterministic plain function
            without side effects. An answer that fails it raises `Refused`.

    Returns:
        The signal. Pass on its ``id``, then await ``result()``.

    Raises:
        PerdureTerminalError: The check is a coroutine function.
    """
    refuse_inside_run("wait_for_external_signal")
    if inspect.iscoroutinefunction(check):
        raise PerdureTerminalError("wait_for_external_signal: check must be a plain function, not a coroutine function")
    id_, future = ctx.awakeable(serde=AnswerSerde(type_, check))
    return ExternalSignal(id_, future)


def resolve_external_signal(ctx: restate.Context, id_: str, value: T, type_: type[T] | None = None) -> None:
    """Answer a signal of another invocation. An answer to an ended invocation is ignored.

    Args:
        ctx: The handler's context.
        id_: The signal's ID.
        value: The answer.
        type_: The answer's type; by default that of the value.

    Raises:
        InvalidInput: The ID is not that of a signal.
        PerdureTerminalError: The answer would be read back changed, or not at all.
    """
    refuse_inside_run("resolve_external_signal")
    answer = serde_for(type_ or type_of(value)).write(value, f"the answer to external signal '{check_signal_id(id_)}'")
    ctx.resolve_awakeable(id_, answer, serde=_bytes)


def reject_external_signal(ctx: restate.Context, id_: str, reason: str, code: int = 500) -> None:
    """Fail a signal of another invocation with a terminal error. A rejection to an ended invocation is ignored.

    Args:
        ctx: The handler's context.
        id_: The signal's ID.
        reason: The error's message.
        code: The error's HTTP status, 400 to 599; another one becomes 500.

    Raises:
        InvalidInput: The ID is not that of a signal.
    """
    refuse_inside_run("reject_external_signal")
    ctx.reject_awakeable(check_signal_id(id_), reason, code)


def get_internal_signal(ctx: WorkflowContexts, name: str, type_: type[T]) -> InternalSignal[T]:
    """Return an internal signal of a workflow.

    Args:
        ctx: A workflow's context, main or shared.
        name: The signal's name.
        type_: The value's type.
    """
    refuse_inside_run("get_internal_signal")
    serde = _PromiseSerde(type_, sdk.handler_info(ctx), name)
    return InternalSignal(cast("restate.WorkflowContext", ctx).promise(name, serde=serde))


@dataclass(frozen=True)
class PromiseRaceResult(Generic[T]):
    """Result of a race between a promise and a timeout.

    Args:
        value: The promise's value; None after a timeout.
        timed_out: True after a timeout.
    """

    value: T | None
    timed_out: bool

    @property
    def promise_won(self) -> bool:
        """True when the promise was completed in time."""
        return not self.timed_out


async def race_promise_with_timeout(
    ctx: restate.WorkflowContext, name: str, timeout: timedelta, type_: type[T]
) -> PromiseRaceResult[T]:
    """Wait for an internal signal until a timeout.

    Args:
        ctx: The workflow's context.
        name: The signal's name.
        timeout: Durable timeout. Zero or less returns the value only if the signal is completed.
        type_: The value's type.

    Returns:
        The value or the timeout; a timeout is not an error.

    Raises:
        TerminalError: The signal was rejected, or this invocation was cancelled.
    """
    refuse_inside_run("race_promise_with_timeout")
    with activity(ctx, ActivityKind.RACE, f"signal {name}"):
        promise = get_internal_signal(ctx, name, type_).future
        winner, value = await restate.select(promise=promise, timeout=_timer(ctx, timeout, name))
    if winner == "timeout":
        return PromiseRaceResult(None, timed_out=True)
    return PromiseRaceResult(value, timed_out=False)


async def race_awakeable_with_timeout(
    ctx: restate.Context, signal: ExternalSignal[T], timeout: timedelta, timeout_value: T
) -> tuple[T, bool]:
    """Wait for an external signal until a timeout.

    Args:
        ctx: The handler's context.
        signal: The signal that `wait_for_external_signal` returned.
        timeout: Durable timeout. Zero or less returns the value only if the signal is completed.
        timeout_value: The value after a timeout.

    Returns:
        The value and False, or ``timeout_value`` and True.

    Raises:
        Refused: The answer failed the signal's check. Terminal, 403.
        TerminalError: The signal was rejected, or this invocation was cancelled.
    """
    refuse_inside_run("race_awakeable_with_timeout")
    with activity(ctx, ActivityKind.RACE, f"signal {signal.id}"):
        winner, value = await restate.select(signal=signal.future, timeout=_timer(ctx, timeout, signal.id))
    return (timeout_value, True) if winner == "timeout" else (value, False)


def _timer(ctx: restate.Context, timeout: timedelta, signal: str) -> restate.RestateDurableFuture[None]:
    # The SDK rejects a negative duration, and the attempt would fail repeatedly.
    return ctx.sleep(max(scaled(timeout), timedelta(0)), f"timeout {signal}")
