"""Signals: external ones are awakeables, internal ones a workflow's durable promises.

An answer to an external signal is not authenticated. The engine's ingress takes it from anybody who knows the signal's
id, and the id follows from the invocation's id, which `IngressClient.send` returns and the admin API lists. Check the
answer (``check``), or take it as a wake-up and read the result from its owner with a call. Rejections carry no proof
either: treat one as "ask again", and never as a fact.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeAlias, TypeVar, cast

import restate

from perdure._runtime import sdk
from perdure._runtime.invocation_ids import check_signal_id
from perdure._runtime.run_scope import refuse_inside_run
from perdure._runtime.serdes import CheckedSerde, serde_for
from perdure._runtime.time_scale import scaled
from perdure.errors import CODE_KEY, InvalidInput, PerdureTerminalError, Refused, UnreadableState
from perdure.observability.activities import ActivityKind, activity

T = TypeVar("T")

Check: TypeAlias = Callable[[T], bool]
"""Tells if an answer is genuine. It gives the same verdict for the same answer each time: a replay asks it again."""

WorkflowContexts = restate.WorkflowContext | restate.WorkflowSharedContext


class AnswerSerde(CheckedSerde[T], Generic[T]):
    """Reads the answer to an external signal, which may come from anywhere.

    One that does not fit is a terminal error: the signal has been answered, so waiting again would never help, and any
    other error would be retried for ever.

    Args:
        type_: The answer's type.
        check: Tells if an answer is genuine; without it, every answer is.
    """

    def __init__(self, type_: type[T], check: Check[T] | None = None) -> None:
        super().__init__(type_)
        self._check = check

    def deserialize(self, buf: bytes) -> T | None:
        """Return the answer, or raise a terminal error: it does not fit the type, or fails the check."""
        answer = super().deserialize(buf)
        if self._check is not None and self._check(cast("T", answer)) is not True:
            raise Refused(
                "the answer to an external signal failed its check, so it was not used; a signal can be answered only "
                "once: ask again with a new signal",
                403,
                "unproved_answer",
            )
        return answer

    def unreadable(self, name: str, found: InvalidInput) -> Exception:
        """Return a terminal 400 that names the field."""
        message = f"the answer to an external signal does not fit {name}: {found.message}"
        return InvalidInput(message, metadata=found.metadata)


class _PromiseSerde(CheckedSerde[T], Generic[T]):
    """Reads the value of an internal signal, which the workflow's own code has written.

    As with state, one that does not fit is a deploy's fault and heals with another: the main handler waits for that,
    and a shared one says so at once.
    """

    def __init__(self, type_: type[T], handler: sdk.HandlerInfo, name: str) -> None:
        super().__init__(type_)
        self._handler = handler
        self._name = name

    def unreadable(self, name: str, found: InvalidInput) -> Exception:
        """Return an error that names handler, signal and type."""
        message = f"{self._handler} can't read signal '{self._name}' as {name}: {found.message}. Deploy code that can"
        if self._handler.writes_state:
            return UnreadableState(message)
        facts = {CODE_KEY: "unreadable_signal", "handler": str(self._handler), "signal": self._name}
        return PerdureTerminalError(message, metadata=facts)


class ExternalSignal(Generic[T]):
    """An awakeable: give its id to the outside world, then wait for the result.

    Args:
        id_: The awakeable's id.
        future: The SDK's future, for `restate.select`.
    """

    def __init__(self, id_: str, future: restate.RestateDurableFuture[T]) -> None:
        self.id = id_
        self.future = future

    async def result(self) -> T:
        """Wait for the answer.

        Raises:
            InvalidInput: The answer does not fit the type. Terminal, 400.
            Refused: The answer failed the signal's check. Terminal, 403, with the code ``unproved_answer``.
            TerminalError: The signal was rejected, by anybody who knows its id.
            Cancelled: This invocation was cancelled.
        """
        refuse_inside_run("an external signal")
        return await self.future


class InternalSignal(Generic[T]):
    """A durable promise of a workflow: every handler of the same workflow key can wait for it or complete it.

    Args:
        promise: The SDK's promise.
    """

    def __init__(self, promise: restate.DurablePromise[T]) -> None:
        self._promise_of_sdk = promise

    @property
    def _promise(self) -> restate.DurablePromise[T]:
        refuse_inside_run("an internal signal")
        return self._promise_of_sdk

    @property
    def future(self) -> restate.RestateDurableFuture[T]:
        """The SDK's future of the value, for `restate.select`; a new one, and a journal entry, each time."""
        return self._promise.value()

    async def result(self) -> T:
        """Wait for the value.

        Raises:
            TerminalError: The promise was rejected.
            Cancelled: This invocation was cancelled.
        """
        return await self._promise.value()

    async def peek(self) -> T | None:
        """Return the value if it is there, else None, without waiting."""
        return await self._promise.peek()

    async def resolve(self, value: T) -> None:
        """Complete the promise; it can be completed once."""
        await self._promise.resolve(value)

    async def reject(self, reason: str, code: int = 500) -> None:
        """Fail the promise: those who wait get a terminal error with this reason and HTTP status."""
        await self._promise.reject(reason, code)


def wait_for_external_signal(
    ctx: restate.Context, type_: type[T], *, check: Check[T] | None = None
) -> ExternalSignal[T]:
    """Make a signal that the outside world answers.

    Without a check, the answer comes from anybody who knows the signal's id: do nothing with it that needs a proof.

    Example:
        signal = wait_for_external_signal(ctx, Receipt, check=lambda receipt: verify(receipt.body, receipt.signature))

    Args:
        ctx: The handler's context.
        type_: The answer's type.
        check: Tells if an answer is genuine, for example by the signature in it. A plain function without side effects
            that gives the same verdict for the same answer each time. An answer that fails it is a `Refused` error.

    Returns:
        The signal; pass its ``id`` on, then await ``result()``.

    Raises:
        PerdureTerminalError: The check is a coroutine function.
    """
    refuse_inside_run("wait_for_external_signal")
    if inspect.iscoroutinefunction(check):
        raise PerdureTerminalError("wait_for_external_signal: check must be a plain function, not a coroutine function")
    id_, future = ctx.awakeable(serde=AnswerSerde(type_, check))
    return ExternalSignal(id_, future)


def resolve_external_signal(ctx: restate.Context, id_: str, value: T, type_: type[T] | None = None) -> None:
    """Answer a signal of another invocation.

    Args:
        ctx: The handler's context.
        id_: The signal's id.
        value: The answer.
        type_: The answer's type; the value's own class by default.

    Raises:
        InvalidInput: No signal has such an id. One that nobody waits for any more is no error.
    """
    refuse_inside_run("resolve_external_signal")
    ctx.resolve_awakeable(check_signal_id(id_), value, serde=serde_for(type_ or type(value)))


def reject_external_signal(ctx: restate.Context, id_: str, reason: str, code: int = 500) -> None:
    """Fail a signal of another invocation: who waits gets a terminal error.

    Args:
        ctx: The handler's context.
        id_: The signal's id.
        reason: The error's message.
        code: Its HTTP status.

    Raises:
        InvalidInput: No signal has such an id. One that nobody waits for any more is no error.
    """
    refuse_inside_run("reject_external_signal")
    ctx.reject_awakeable(check_signal_id(id_), reason, code)


def get_internal_signal(ctx: WorkflowContexts, name: str, type_: type[T]) -> InternalSignal[T]:
    """Return a signal inside one workflow, by name.

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
    """Who won a race between a promise and a timeout.

    Args:
        value: The promise's value; None when time ran out.
        timed_out: True when time ran out.
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
    """Wait for an internal signal, but no longer than the timeout.

    Args:
        ctx: The workflow's context.
        name: The signal's name.
        timeout: How long to wait; durable, so a crash does not start it again. Nothing or less, as of a deadline that
            has passed, takes the value only if it is there.
        type_: The value's type.

    Returns:
        The value, or that time ran out; a timeout is no error.

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
    """Wait for an external signal, but no longer than the timeout.

    The answer is checked if the signal has a check; without one, it comes from anybody who knows the signal's id.

    Args:
        ctx: The handler's context.
        signal: What `wait_for_external_signal` returned.
        timeout: How long to wait; durable. Nothing or less takes the value only if it is there.
        timeout_value: What to return when time runs out.

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


def _timer(ctx: restate.Context, timeout: timedelta, what: str) -> restate.RestateDurableFuture[None]:
    # The SDK can't sleep a negative time, and fails at each attempt.
    return ctx.sleep(max(scaled(timeout), timedelta(0)), f"timeout {what}")
