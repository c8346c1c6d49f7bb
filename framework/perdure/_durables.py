"""Durable operations that have been started, as things that can be waited for together."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterable
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import restate

from perdure.clients import CallFuture
from perdure.errors import PerdureTerminalError, TerminalError
from perdure.signals import ExternalSignal, InternalSignal

E = TypeVar("E", bound=TerminalError)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class DurableFuture(Protocol[T_co]):
    """One durable operation that has been started, such as `CallFuture` and `RunFuture`."""

    @property
    def future(self) -> restate.RestateDurableFuture[Any]:
        """The SDK's future, for waiting."""
        ...

    def __await__(self) -> Generator[Any, Any, T_co]:
        """Wait for the result."""
        ...


Durable: TypeAlias = DurableFuture[T] | ExternalSignal[T] | InternalSignal[T] | restate.RestateDurableFuture[T]
"""What can be waited for together: calls, runs, signals, timers, and the SDK's own futures."""


class Operation(Generic[T]):
    """A future among others. The SDK's own is taken once: asking a signal again makes another journal entry."""

    def __init__(self, index: int, durable: Durable[T], future: restate.RestateDurableFuture[Any]) -> None:
        self.index = index
        self.future = future
        self._durable = durable

    async def result(self) -> T:
        """Return the result, or raise the error."""
        if isinstance(self._durable, ExternalSignal | InternalSignal):
            return cast("T", await self.future)
        return await self._durable

    async def cancel(self) -> None:
        """Cancel it if it is a call. Nothing else can be cancelled."""
        if isinstance(self._durable, CallFuture):
            await self._durable.cancel()
        elif isinstance(self._durable, restate.RestateDurableCallFuture):
            await self._durable.cancel_invocation()


def operations_of(what: str, durables: Iterable[Durable[T]]) -> list[Operation[T]]:
    """Return futures as operations, or refuse what is none.

    Args:
        what: Who takes them, for the message.
        durables: What the user gave.

    Raises:
        PerdureTerminalError: One of them is no durable future, for example a coroutine.
    """
    operations, refused = list[Operation[T]](), None
    item: Any
    for index, item in enumerate(durables):
        future = _future_of(item)
        if future is not None:
            operations.append(Operation(index, item, future))
        elif refused is None:
            refused = _not_durable(what, index, item)
        if inspect.iscoroutine(item):
            item.close()  # else Python complains that it was never awaited
    if refused is not None:
        raise refused
    return operations


def _future_of(durable: object) -> restate.RestateDurableFuture[Any] | None:
    if isinstance(durable, restate.RestateDurableFuture):
        return durable
    future = getattr(durable, "future", None)
    return future if isinstance(future, restate.RestateDurableFuture) else None


def _not_durable(what: str, index: int, value: object) -> PerdureTerminalError:
    name = f"the coroutine {value.__qualname__}" if inspect.iscoroutine(value) else f"a {type(value).__qualname__}"
    return PerdureTerminalError(
        f"{what}: operation {index} is {name}, which is no durable future. Start it first, with call_async or "
        "run_async, and pass the future; for several steps each, use map_concurrent with a function.",
        metadata={"code": "not_durable", "index": str(index)},
    )


def told(error: E, where: str, index: int, **facts: str) -> E:
    """Return the same error, of the same class, with a message that says where it happened.

    Without its constructor, which may be anything; all that an error is, is in its attributes.
    """
    kind = type(error)
    message = f"{where}: {error.message}"
    copy = kind.__new__(kind, message)
    copy.__dict__.update(vars(error))
    copy.args = (message,)
    copy.message = message
    copy.metadata = {**(error.metadata or {}), **facts, "index": str(index)}
    return copy
