"""Durable concurrency, with results in the order of the input.

- `gather`, `fan_out`, `fan_out_fail` and `race` wait for **futures**: calls (`ServiceClient.call_async`), runs
  (`run_async`), signals and timers (``ctx.sleep``) that have been started.
- `map_concurrent` and `process_batch` start **functions** ``(item, index) -> awaitable``, which may take any number of
  durable steps, up to a limit at a time. `for_each` runs them sequentially.

Coroutines are not accepted as futures: under `asyncio.gather` their steps would have another order at every replay.
`map_concurrent` runs coroutines in the order of the journal.

A terminal error keeps its class, status and metadata. Its message and its metadata (``index``) name the operation, and
the original error is the ``__cause__``. A cancel of this invocation ends the whole operation with `Cancelled`, once the
actions of its runs have ended.
``cancel_losers`` cancels calls only; runs, signals and timers end by themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast, overload

import restate

from perdure._runtime import sdk
from perdure._runtime.branches import Branches, Ended
from perdure._runtime.failures import with_message
from perdure._runtime.run_scope import refuse_inside_run
from perdure.clients import CallFuture
from perdure.errors import Cancelled, InvalidInput, PerdureTerminalError, TerminalError, message_of
from perdure.observability.activities import ActivityKind, activity
from perdure.runs import RunFuture, settle_runs
from perdure.signals import ExternalSignal, InternalSignal

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E", bound=TerminalError)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")

DEFAULT_LIMIT = 10
"""Default number of items that `map_concurrent` and `process_batch` process concurrently."""


class DurableFuture(Protocol[T_co]):
    """A durable operation that has been started, such as `CallFuture` and `RunFuture`."""

    @property
    def future(self) -> restate.RestateDurableFuture[Any]:
        """The SDK's future, for waiting."""
        ...

    def __await__(self) -> Generator[Any, Any, T_co]:
        """Wait for the result."""
        ...


Durable: TypeAlias = DurableFuture[T] | ExternalSignal[T] | InternalSignal[T] | restate.RestateDurableFuture[T]
"""Calls, runs, signals, timers, and the SDK's own futures."""


class _Operation(Generic[T]):
    """One of several futures. Holds the SDK's future, because each access to a signal's future adds a journal entry."""

    def __init__(self, index: int, durable: Durable[T], future: restate.RestateDurableFuture[Any]) -> None:
        self.index = index
        self.future = future
        self._durable = durable

    async def result(self) -> T:
        """Return the result, or raise the error."""
        if isinstance(self._durable, ExternalSignal | InternalSignal):
            return cast("T", await self.future)
        return await self._durable

    @property
    def run(self) -> RunFuture[T] | None:
        """The operation if it is a run."""
        return self._durable if isinstance(self._durable, RunFuture) else None

    async def cancel(self) -> None:
        """Cancel the operation if it is a call."""
        if isinstance(self._durable, CallFuture):
            await self._durable.cancel()
        elif isinstance(self._durable, restate.RestateDurableCallFuture):
            await self._durable.cancel_invocation()


@dataclass(frozen=True)
class FanOutResult(Generic[T]):
    """Results and errors of concurrent operations.

    Args:
        results: Results in the order of the operations; None for a failed one.
        errors: Terminal errors of the failed operations, by index.
    """

    results: tuple[T | None, ...]
    errors: Mapping[int, TerminalError]

    @property
    def success(self) -> bool:
        """True if no operation failed."""
        return not self.errors

    @property
    def failed(self) -> int:
        """Number of failed operations."""
        return len(self.errors)

    def values(self) -> list[T]:
        """Return the results if no operation failed.

        Raises:
            TerminalError: The failure with the lowest index, as from `fan_out_fail`.
        """
        for index in sorted(self.errors):
            raise _with_location(self.errors[index], f"fanout operation {index} failed", index) from self.errors[index]
        return cast("list[T]", list(self.results))


@dataclass(frozen=True)
class RaceResult(Generic[T]):
    """Winner of a race.

    Args:
        winner: Result of the operation that ended first.
        index: Index of that operation.
    """

    winner: T
    index: int


async def for_each(ctx: restate.Context, items: Iterable[A], body: Callable[[A, int], Awaitable[object]]) -> None:
    """Call a function for each item, sequentially.

    Args:
        ctx: The handler's context.
        items: The items, in the same order at every replay (not a set).
        body: Receives an item and its index. Its durable steps are journaled, so that a replay continues after them.

    Raises:
        TerminalError: The body failed: ``foreach failed at index i: …``. The remaining items are skipped.
        Cancelled: This invocation was cancelled.
    """
    _enter(ctx, "for_each")
    for index, item in enumerate(items):
        try:
            await body(item, index)
        except Cancelled:
            raise
        except TerminalError as error:
            raise _with_location(error, f"foreach failed at index {index}", index) from error


async def map_concurrent(
    ctx: restate.Context,
    items: Iterable[A],
    function: Callable[[A, int], Awaitable[R] | Durable[R]],
    *,
    limit: int = DEFAULT_LIMIT,
) -> list[R]:
    """Call a function for each item, concurrently.

    Args:
        ctx: The handler's context.
        items: The items, in the same order at every replay (not a set).
        function: Receives an item and its index, in their order. Returns a future, or is a coroutine function that
            awaits durable operations only.
        limit: Maximum number of concurrent items; 1 or more.

    Returns:
        The results, in the order of the items.

    Raises:
        TerminalError: ``map operation i failed: …``, the first failure in time. It is raised after the running items
            have ended; no other item starts.
        Cancelled: This invocation was cancelled. The running items receive the cancel too.
        InvalidInput: The limit is less than 1.

    Example:
        quotes = await map_concurrent(
            ctx, flights, lambda flight, _: run_async(ctx, f"quote {flight}", fetch_quote, flight), limit=5
        )
    """
    _enter(ctx, "map_concurrent")
    if limit < 1:
        raise InvalidInput(f"map_concurrent: limit must be 1 or more, not {limit}", metadata={"field": "limit"})
    ended = await _run(ctx, list(items), function, limit=limit, caller="map_concurrent")
    for index, error in ended.failures.items():
        raise _with_location(error, f"map operation {index} failed", index) from error
    return _in_order(ended)


async def process_batch(
    ctx: restate.Context,
    items: Iterable[A],
    function: Callable[[A, int], Awaitable[R] | Durable[R]],
    *,
    size: int = DEFAULT_LIMIT,
) -> list[R]:
    """Call a function for each item in chunks; the items of a chunk are concurrent.

    A chunk starts after all items of the previous chunk have succeeded.

    Args:
        ctx: The handler's context.
        items: The items, in the same order at every replay (not a set).
        function: As for `map_concurrent`; the index counts over all items.
        size: Number of items in a chunk; 1 or more.

    Returns:
        The results, in the order of the items.

    Raises:
        TerminalError: ``batch processing failed at chunk c: …``, with ``chunk`` and the item's ``index`` in the
            metadata. The rest of the chunk ends first; the remaining chunks are skipped.
        Cancelled: This invocation was cancelled.
        InvalidInput: The size is less than 1.
    """
    _enter(ctx, "process_batch")
    every, results = list(items), list[R]()
    if size < 1:
        raise InvalidInput(f"process_batch: size must be 1 or more, not {size}", metadata={"field": "size"})
    for chunk, start in enumerate(range(0, len(every), size)):
        ended = await _run(ctx, every[start : start + size], function, limit=size, caller="process_batch", start=start)
        for index, error in ended.failures.items():
            location = f"batch processing failed at chunk {chunk}"
            raise _with_location(error, location, start + index, chunk=str(chunk)) from error
        results.extend(_in_order(ended))
    return results


async def fan_out(ctx: restate.Context, operations: Iterable[Durable[T]]) -> FanOutResult[T]:
    """Wait for all operations and collect their results and errors.

    Args:
        ctx: The handler's context.
        operations: Futures.

    Returns:
        Results in the order of the operations, and the errors of the failed ones.

    Raises:
        Cancelled: This invocation was cancelled.

    Example:
        found = await fan_out(ctx, *(ServiceClient(ctx, search.find).call_async(airline) for airline in airlines))
        offers = [offer for offer in found.values() if offer.seats]
    """
    _enter(ctx, "fan_out")
    found = _operations_of("fan_out", operations)
    await _all(found, "fan_out")
    results: list[T | None] = []
    errors: dict[int, TerminalError] = {}
    for operation in found:
        try:
            results.append(await operation.result())
        except TerminalError as error:
            results.append(None)
            errors[operation.index] = error
    return FanOutResult(tuple(results), errors)


async def fan_out_fail(
    ctx: restate.Context, operations: Iterable[Durable[T]], *, cancel_losers: bool = False
) -> list[T]:
    """Wait for all operations, or for the first failure.

    Args:
        ctx: The handler's context.
        operations: Futures.
        cancel_losers: Cancel the unfinished calls after a failure; by default they continue.

    Returns:
        The results, in the order of the operations.

    Raises:
        TerminalError: ``fanout operation i failed: …``, the first failure in time.
        Cancelled: This invocation was cancelled.
    """
    _enter(ctx, "fan_out_fail")
    pending = _operations_of("fan_out_fail", operations)
    results: dict[int, T] = {}
    while pending:
        completed, pending = await _first(pending, "fan_out_fail")
        for operation in completed:
            try:
                results[operation.index] = await operation.result()
            except TerminalError as error:
                if cancel_losers:
                    await _cancel(pending)
                raise _with_location(error, f"fanout operation {operation.index} failed", operation.index) from error
    return [results[index] for index in sorted(results)]


async def race(ctx: restate.Context, *operations: Durable[T], cancel_losers: bool = False) -> RaceResult[T]:
    """Wait for the operation that ends first.

    Args:
        ctx: The handler's context.
        operations: At least one future. If several have ended, the first of them in this order wins.
        cancel_losers: Cancel the unfinished calls; by default they continue and can be awaited.

    Returns:
        The winner's value and index.

    Raises:
        TerminalError: ``race operation i failed: …``: the first operation to end failed.
        Cancelled: This invocation was cancelled.
        InvalidInput: There are no operations.

    Example:
        airlines = [ServiceClient(ctx, airline.quote).call_async(trip) for airline in (first, second)]
        won = await race(ctx, *airlines, cancel_losers=True)
    """
    _enter(ctx, "race")
    found = _operations_of("race", operations)
    if not found:
        raise InvalidInput("race requires at least one future", metadata={"field": "operations"})
    entries = sdk.journal_handles([operation.future for operation in found])
    with activity(ctx, ActivityKind.RACE, f"{len(found)} operations", once=entries):
        (first, *_), pending = await _first(found, "race")
    if cancel_losers:
        await _cancel(pending)
    try:
        return RaceResult(await first.result(), first.index)
    except TerminalError as error:
        raise _with_location(error, f"race operation {first.index} failed", first.index) from error


@overload
async def gather(ctx: restate.Context, first: Durable[A], second: Durable[B], /) -> tuple[A, B]: ...
@overload
async def gather(
    ctx: restate.Context, first: Durable[A], second: Durable[B], third: Durable[C], /
) -> tuple[A, B, C]: ...
@overload
async def gather(
    ctx: restate.Context, first: Durable[A], second: Durable[B], third: Durable[C], fourth: Durable[D], /
) -> tuple[A, B, C, D]: ...
@overload
async def gather(ctx: restate.Context, /, *operations: Durable[T]) -> tuple[T, ...]: ...
async def gather(ctx: restate.Context, /, *operations: Durable[Any]) -> tuple[Any, ...]:
    """Wait for all operations and return their results.

    A failure is raised after all operations have ended; `fan_out_fail` raises it at once.

    Args:
        ctx: The handler's context.
        operations: Futures, whose types may differ.

    Returns:
        The results, in the order of the operations.

    Raises:
        TerminalError: ``gather future error at index i: …``, the failure with the lowest index.
        Cancelled: This invocation was cancelled.
    """
    _enter(ctx, "gather")
    found = _operations_of("gather", operations)
    await _all(found, "gather")
    results = []
    for operation in found:
        try:
            results.append(await operation.result())
        except TerminalError as error:
            raise _with_location(error, f"gather future error at index {operation.index}", operation.index) from error
    return tuple(results)


def _enter(ctx: restate.Context, caller: str) -> None:
    refuse_inside_run(caller)
    sdk.guard(ctx)  # handlers of the SDK alone, too: distinguishes a cancel from the failure of an item


async def _run(
    ctx: restate.Context,
    items: Sequence[A],
    function: Callable[[A, int], Awaitable[R] | Durable[R]],
    *,
    limit: int,
    caller: str,
    start: int = 0,
) -> Ended[R]:
    def body(index: int, item: A) -> Callable[[], Coroutine[Any, Any, R]]:
        async def run() -> R:
            result = function(item, start + index)
            if isinstance(result, ExternalSignal | InternalSignal):
                return await result.result()
            return await result

        return run

    ended = await Branches(ctx, [body(index, item) for index, item in enumerate(items)], limit).run()
    if ended.cancel is not None:
        raise _cancelled(caller) from ended.cancel
    return ended


def _in_order(ended: Ended[R]) -> list[R]:
    return [ended.results[index] for index in sorted(ended.results)]


@asynccontextmanager
async def _ending_runs(operations: Sequence[_Operation[Any]], caller: str) -> AsyncIterator[None]:
    """Wait for the actions of the runs if a cancel ends the block; they could overtake their compensations."""
    try:
        yield
    except TerminalError as error:  # a cancel, or the refusal of a wait
        await settle_runs([run for each in operations if (run := each.run) is not None], error)
        if isinstance(error, Cancelled):
            raise _cancelled(caller) from error
        raise


async def _all(operations: Sequence[_Operation[Any]], caller: str) -> None:
    async with _ending_runs(operations, caller):
        await restate.gather(*(operation.future for operation in operations))


async def _first(operations: Sequence[_Operation[T]], caller: str) -> tuple[list[_Operation[T]], list[_Operation[T]]]:
    """Wait until one ends; return the ended and the unfinished operations, each in their order."""
    async with _ending_runs(operations, caller):
        completed, _ = await restate.wait_completed(*(operation.future for operation in operations))
    done = {id(future) for future in completed}
    ended = [operation for operation in operations if id(operation.future) in done]
    return ended, [operation for operation in operations if id(operation.future) not in done]


async def _cancel(losers: Sequence[_Operation[Any]]) -> None:
    for loser in losers:
        await loser.cancel()


def _cancelled(caller: str) -> Cancelled:
    return Cancelled(f"cancelled during {caller}", metadata={"during": caller})


def _operations_of(caller: str, durables: Iterable[Durable[T]]) -> list[_Operation[T]]:
    """Return futures as operations; raise a terminal error if one is not a durable future."""
    operations, problem = list[_Operation[T]](), None
    item: Any
    for index, item in enumerate(durables):
        future = _future_of(item)
        if future is not None:
            operations.append(_Operation(index, item, future))
        elif problem is None:
            problem = _not_durable(caller, index, item)
        if inspect.iscoroutine(item):
            item.close()  # avoids Python's warning about a coroutine that is never awaited
    if problem is not None:
        raise problem
    return operations


def _future_of(durable: object) -> restate.RestateDurableFuture[Any] | None:
    if isinstance(durable, restate.RestateDurableFuture):
        return durable
    future = getattr(durable, "future", None)
    return future if isinstance(future, restate.RestateDurableFuture) else None


def _not_durable(caller: str, index: int, value: object) -> PerdureTerminalError:
    name = f"the coroutine {value.__qualname__}" if inspect.iscoroutine(value) else f"a {type(value).__qualname__}"
    return PerdureTerminalError(
        f"{caller}: operation {index} is {name}, not a durable future. Start the operation with call_async or "
        "run_async and pass its future, or use map_concurrent with a function of several steps",
        metadata={"code": "not_durable", "index": str(index)},
    )


def _with_location(error: E, location: str, index: int, **details: str) -> E:
    """Return a copy of an error whose message and metadata name its location."""
    return with_message(error, f"{location}: {message_of(error)}", **details, index=str(index))
