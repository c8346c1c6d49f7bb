"""Signals: external ones are awakeables, answered by who has the id; internal ones a workflow's durable promises."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

import restate
from pydantic import ValidationError
from restate.serde import Serde

from perdure.errors import InvalidInput
from perdure.run_scope import refuse_inside_run
from perdure.serdes import TypedSerde, invalid_input, serde_for

T = TypeVar("T")

WorkflowContexts = restate.WorkflowContext | restate.WorkflowSharedContext


class AnswerSerde(Serde[T], Generic[T]):
    """Reads the answer to an external signal, which may come from anywhere.

    One that does not fit is a terminal error: the signal has been answered, so waiting again would never help, and any
    other error would be retried for ever.
    """

    def __init__(self, inner: TypedSerde[T]) -> None:
        self._inner = inner

    def serialize(self, obj: T | None) -> bytes:
        """Return the value as JSON."""
        return self._inner.serialize(obj)

    def deserialize(self, buf: bytes) -> T | None:
        """Return the value, or raise a terminal 400 that names the field."""
        try:
            return self._inner.deserialize(buf)
        except ValidationError as error:
            found = invalid_input(error, empty=not buf)
            name = getattr(self._inner.type, "__qualname__", str(self._inner.type))
            raise InvalidInput(
                f"the answer to an external signal does not fit {name}: {found.message}", metadata=found.metadata
            ) from error


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
            InvalidInput: The answer does not fit the type.
            TerminalError: The signal was rejected.
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


def wait_for_external_signal(ctx: restate.Context, type_: type[T]) -> ExternalSignal[T]:
    """Make a signal that the outside world answers.

    Args:
        ctx: The handler's context.
        type_: The answer's type.

    Returns:
        The signal; pass its ``id`` on, then await ``result()``.
    """
    refuse_inside_run("wait_for_external_signal")
    id_, future = ctx.awakeable(serde=AnswerSerde(serde_for(type_)))
    return ExternalSignal(id_, future)


def resolve_external_signal(ctx: restate.Context, id_: str, value: T, type_: type[T] | None = None) -> None:
    """Answer a signal of another invocation.

    Args:
        ctx: The handler's context.
        id_: The signal's id.
        value: The answer.
        type_: The answer's type; the value's own class by default.
    """
    refuse_inside_run("resolve_external_signal")
    ctx.resolve_awakeable(id_, value, serde=serde_for(type_ or type(value)))


def reject_external_signal(ctx: restate.Context, id_: str, reason: str, code: int = 500) -> None:
    """Fail a signal of another invocation: who waits gets a terminal error.

    Args:
        ctx: The handler's context.
        id_: The signal's id.
        reason: The error's message.
        code: Its HTTP status.
    """
    refuse_inside_run("reject_external_signal")
    ctx.reject_awakeable(id_, reason, code)


def get_internal_signal(ctx: WorkflowContexts, name: str, type_: type[T]) -> InternalSignal[T]:
    """Return a signal inside one workflow, by name.

    Args:
        ctx: A workflow's context, main or shared.
        name: The signal's name.
        type_: The value's type.
    """
    refuse_inside_run("get_internal_signal")
    return InternalSignal(cast("restate.WorkflowContext", ctx).promise(name, serde=serde_for(type_)))
