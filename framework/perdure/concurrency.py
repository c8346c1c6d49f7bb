"""Several durable things at once, or one after the other, with results in the order of the input.

Two kinds of things run at once here, and the types keep them apart:

- **Futures** are one durable operation that has been started: a call (`ServiceClient.call_async`), a run (`run_async`),
  a signal, a timer (``ctx.sleep``). `gather`, `fan_out`, `fan_out_fail` and `race` take them. All of them are under way
  already, so how many there are is the caller's choice.
- **Functions** ``(item, index) -> awaitable`` do any number of durable steps for one item. `map_concurrent` and
  `process_batch` start them, no more than so many at once, and `for_each` one after the other.

A coroutine that is neither is refused where futures are taken: the engine repeats a handler step by step, and several
coroutines under `asyncio.gather` take their steps in another order each time. `map_concurrent` runs coroutines in an
order that the journal decides, see `branches`.

A terminal error keeps its class, status, code and metadata; its message says where it happened, the metadata get the
``index``, and the error itself is the ``__cause__``. A cancel of this invocation is never taken for the failure of an
item: it ends the whole as `Cancelled`. Calls that are cancelled on request are told so by their invocation's id; a run,
a signal or a timer can't be cancelled, and is left to end by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, overload

import restate

from perdure._durables import Durable, Operation, operations_of, told
from perdure._runtime import sdk
from perdure._runtime.branches import Branches, Ended
from perdure._runtime.run_scope import refuse_inside_run
from perdure.errors import Cancelled, InvalidInput, TerminalError
from perdure.observability.activities import ActivityKind, activity
from perdure.signals import ExternalSignal, InternalSignal

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
T = TypeVar("T")
R = TypeVar("R")

DEFAULT_LIMIT = 10
"""How many items `map_concurrent` and `process_batch` take at once when they aren't told."""


@dataclass(frozen=True)
class FanOutResult(Generic[T]):
    """What became of operations that ran together.

    Args:
        results: One for each operation, in the order in which they were given; None where it failed.
        errors: The terminal error of each that failed, by its index.
    """

    results: tuple[T | None, ...]
    errors: Mapping[int, TerminalError]

    @property
    def success(self) -> bool:
        """True when none failed."""
        return not self.errors

    @property
    def failed(self) -> int:
        """How many failed."""
        return len(self.errors)

    def values(self) -> list[T]:
        """Return the results when none failed.

        Raises:
            TerminalError: The failure with the lowest index, as `fan_out_fail` words it.
        """
        for index in sorted(self.errors):
            raise told(self.errors[index], f"fanout operation {index} failed", index) from self.errors[index]
        return cast("list[T]", list(self.results))


@dataclass(frozen=True)
class RaceResult(Generic[T]):
    """Who won a race.

    Args:
        winner: The value of the operation that was first.
        index: Its place among those that were given.
    """

    winner: T
    index: int


async def for_each(ctx: restate.Context, items: Iterable[A], body: Callable[[A, int], Awaitable[object]]) -> None:
    """Do something for each item, one after the other.

    Args:
        ctx: The handler's context.
        items: The items. Their order must be the same at every replay, so a set won't do.
        body: Called with an item and its index. Its durable steps are journaled, so that a crash goes on where it was.

    Raises:
        TerminalError: The body raised it: ``foreach failed at index i: …``; the items after it are left.
        Cancelled: This invocation was cancelled.
    """
    _enter(ctx, "for_each")
    for index, item in enumerate(items):
        try:
            await body(item, index)
        except Cancelled:
            raise
        except TerminalError as error:
            raise told(error, f"foreach failed at index {index}", index) from error


async def map_concurrent(
    ctx: restate.Context,
    items: Iterable[A],
    function: Callable[[A, int], Awaitable[R] | Durable[R]],
    *,
    limit: int = DEFAULT_LIMIT,
) -> list[R]:
    """Do something for each item, for several at once.

    Args:
        ctx: The handler's context.
        items: The items. Their order must be the same at every replay, so a set won't do.
        function: Called with an item and its index, in their order. It returns a future, or is a coroutine function
            that does any number of durable steps; it may wait for nothing else.
        limit: How many may be under way at once; 1 or more.

    Returns:
        The results, in the order of the items.

    Raises:
        TerminalError: ``map operation i failed: …``, the first failure in time. No further item is begun then, and what
            is under way comes to its end before this is raised.
        Cancelled: This invocation was cancelled, which those under way are told.
        InvalidInput: The limit is less than 1.
    """
    _enter(ctx, "map_concurrent")
    if limit < 1:
        raise InvalidInput(f"map_concurrent: the limit is 1 or more, not {limit}", metadata={"field": "limit"})
    ended = await _run(ctx, list(items), function, limit=limit, what="map_concurrent")
    for index, error in ended.failures.items():
        raise told(error, f"map operation {index} failed", index) from error
    return _in_order(ended)


async def process_batch(
    ctx: restate.Context,
    items: Iterable[A],
    function: Callable[[A, int], Awaitable[R] | Durable[R]],
    *,
    size: int = DEFAULT_LIMIT,
) -> list[R]:
    """Do something for each item, chunk after chunk; the items of a chunk at once.

    Unlike `map_concurrent`, a chunk begins when all of the one before has succeeded.

    Args:
        ctx: The handler's context.
        items: The items. Their order must be the same at every replay, so a set won't do.
        function: As for `map_concurrent`; the index counts over all items.
        size: How many items are in a chunk; 1 or more.

    Returns:
        The results, in the order of the items.

    Raises:
        TerminalError: ``batch processing failed at chunk c: …``; the metadata have ``chunk``, and the item's ``index``.
            The rest of its chunk comes to its end, and the chunks after it are left.
        Cancelled: This invocation was cancelled.
        InvalidInput: The size is less than 1.
    """
    _enter(ctx, "process_batch")
    every, results = list(items), list[R]()
    if size < 1:
        raise InvalidInput(f"process_batch: a chunk has 1 item or more, not {size}", metadata={"field": "size"})
    for chunk, start in enumerate(range(0, len(every), size)):
        ended = await _run(ctx, every[start : start + size], function, limit=size, what="process_batch", start=start)
        for index, error in ended.failures.items():
            where = f"batch processing failed at chunk {chunk}"
            raise told(error, where, start + index, chunk=str(chunk)) from error
        results.extend(_in_order(ended))
    return results


async def fan_out(ctx: restate.Context, operations: Iterable[Durable[T]]) -> FanOutResult[T]:
    """Wait for all operations, and collect what became of each.

    Args:
        ctx: The handler's context.
        operations: Futures.

    Returns:
        Results in the order of the operations, and the errors of those that failed.

    Raises:
        Cancelled: This invocation was cancelled.
    """
    _enter(ctx, "fan_out")
    found = operations_of("fan_out", operations)
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
    """Wait for all operations, or for the first that fails.

    Args:
        ctx: The handler's context.
        operations: Futures.
        cancel_losers: Cancel the calls that have not ended when one fails; else they go on, and nobody waits for them.

    Returns:
        The results, in the order of the operations.

    Raises:
        TerminalError: ``fanout operation i failed: …``, the first failure in time.
        Cancelled: This invocation was cancelled.
    """
    _enter(ctx, "fan_out_fail")
    pending = operations_of("fan_out_fail", operations)
    results: dict[int, T] = {}
    while pending:
        completed, pending = await _first(pending, "fan_out_fail")
        for operation in completed:
            try:
                results[operation.index] = await operation.result()
            except TerminalError as error:
                if cancel_losers:
                    await _cancel(pending)
                raise told(error, f"fanout operation {operation.index} failed", operation.index) from error
    return [results[index] for index in sorted(results)]


async def race(ctx: restate.Context, *operations: Durable[T], cancel_losers: bool = False) -> RaceResult[T]:
    """Wait for the operation that ends first.

    Args:
        ctx: The handler's context.
        operations: Futures; at least one. Of those that have ended already, the first in this order wins.
        cancel_losers: Cancel the calls that have not ended; else they go on, and may still be awaited.

    Returns:
        The winner's value and its index.

    Raises:
        TerminalError: ``race operation i failed: …``; the first to end failed.
        Cancelled: This invocation was cancelled.
        InvalidInput: There is no operation.
    """
    _enter(ctx, "race")
    found = operations_of("race", operations)
    if not found:
        raise InvalidInput("race requires at least one future", metadata={"field": "operations"})
    entries = sdk.entries_of([operation.future for operation in found])
    with activity(ctx, ActivityKind.RACE, f"{len(found)} operations", once=entries):
        (first, *_), pending = await _first(found, "race")
    if cancel_losers:
        await _cancel(pending)
    try:
        return RaceResult(await first.result(), first.index)
    except TerminalError as error:
        raise told(error, f"race operation {first.index} failed", first.index) from error


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
    """Wait for all operations, and return their results.

    Nothing is left under way: a failure is raised when all have ended. `fan_out_fail` raises it at once.

    Args:
        ctx: The handler's context.
        operations: Futures, of the same type or of different ones.

    Returns:
        The results, in the order of the operations.

    Raises:
        TerminalError: ``gather future error at index i: …``, the failure with the lowest index.
        Cancelled: This invocation was cancelled.
    """
    _enter(ctx, "gather")
    found = operations_of("gather", operations)
    await _all(found, "gather")
    results = []
    for operation in found:
        try:
            results.append(await operation.result())
        except TerminalError as error:
            raise told(error, f"gather future error at index {operation.index}", operation.index) from error
    return tuple(results)


def _enter(ctx: restate.Context, what: str) -> None:
    refuse_inside_run(what)
    sdk.guard(ctx)  # also where the handler is the SDK's own: a cancel can then be told from an item's failure


async def _run(
    ctx: restate.Context,
    items: Sequence[A],
    function: Callable[[A, int], Awaitable[R] | Durable[R]],
    *,
    limit: int,
    what: str,
    start: int = 0,
) -> Ended[R]:
    def body(index: int, item: A) -> Callable[[], Coroutine[Any, Any, R]]:
        async def run() -> R:
            made = function(item, start + index)
            if isinstance(made, ExternalSignal | InternalSignal):
                return await made.result()
            return await made

        return run

    ended = await Branches(ctx, [body(index, item) for index, item in enumerate(items)], limit).run()
    if ended.cancel is not None:
        raise _cancelled(what) from ended.cancel
    return ended


def _in_order(ended: Ended[R]) -> list[R]:
    return [ended.results[index] for index in sorted(ended.results)]


async def _all(operations: Sequence[Operation[Any]], what: str) -> None:
    try:
        await restate.gather(*(operation.future for operation in operations))
    except Cancelled as error:
        raise _cancelled(what) from error


async def _first(operations: Sequence[Operation[T]], what: str) -> tuple[list[Operation[T]], list[Operation[T]]]:
    """Wait for the first; return those that have ended and those that have not, each in their order."""
    try:
        completed, _ = await restate.wait_completed(*(operation.future for operation in operations))
    except Cancelled as error:
        raise _cancelled(what) from error
    done = {id(future) for future in completed}
    ended = [operation for operation in operations if id(operation.future) in done]
    return ended, [operation for operation in operations if id(operation.future) not in done]


async def _cancel(losers: Sequence[Operation[Any]]) -> None:
    for loser in losers:
        await loser.cancel()


def _cancelled(what: str) -> Cancelled:
    return Cancelled(f"cancelled during {what}", metadata={"during": what})
