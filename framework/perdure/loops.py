"""Loops of a handler with a limit, and errors that say which iteration failed.

Each iteration leaves entries in the journal, and a replay runs through all of them. A loop that is to go on for months
belongs into a virtual object that sends itself the next turn (as `perdure.schedules` does), not into a longer
limit.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence, Set
from datetime import timedelta
from typing import Any, Final, TypeVar, cast, overload

import restate

from perdure._runtime.waiting import is_own_cancel
from perdure.errors import InvalidInput, LoopFailed, LoopLimitReached, RetryExhausted, TerminalError
from perdure.observability.logging import get_logger
from perdure.timers import WorkflowTimer

T = TypeVar("T")
R = TypeVar("R")

MAX_ITERATIONS: Final = 10_000
MAX_ATTEMPTS: Final = 3
LONGEST_DELAY: Final = timedelta(minutes=5)

log = get_logger("perdure.workflow")


class WorkflowLoop:
    """Loops that end.

    Conditions and bodies may be plain functions or coroutine functions. What they decide by must come from the journal:
    state, promises, calls, runs, `Time`; a clock or a random number of their own makes replays differ.

    Only terminal errors are taken for failures of an iteration. Others are the engine's to retry, and this invocation's
    own cancel goes through a loop as it is.

    Args:
        ctx: The handler's context.
        max_iterations: The most iterations of one loop; nothing or less means the default.
    """

    def __init__(self, ctx: restate.Context, max_iterations: int = MAX_ITERATIONS) -> None:
        self._timer = WorkflowTimer(ctx)
        self.max_iterations = max_iterations if max_iterations > 0 else MAX_ITERATIONS

    async def while_(
        self,
        condition: Callable[[], bool | Awaitable[bool]],
        body: Callable[[int], Awaitable[object] | object],
    ) -> int:
        """Run the body as long as the condition holds.

        Args:
            condition: Asked before each iteration.
            body: Given the iteration's number, from 0.

        Returns:
            How many iterations there were.

        Raises:
            LoopLimitReached: The condition still holds after the most iterations there may be.
            LoopFailed: Condition or body ended with a terminal error; names the iteration, keeps status and metadata.
            Cancelled: This invocation was cancelled.
        """
        iteration = 0
        while await _named(f"loop condition failed at iteration {iteration}", iteration, condition):
            if iteration >= self.max_iterations:
                raise LoopLimitReached(
                    f"workflow loop exceeded max iterations: {self.max_iterations}",
                    metadata={"iterations": str(iteration)},
                )
            await _named(f"loop body failed at iteration {iteration}", iteration, body, iteration)
            iteration += 1
        return iteration

    @overload  # with one signature for both kinds of bodies, mypy infers nothing
    async def retry(
        self,
        body: Callable[[int], Awaitable[T]],
        max_attempts: int = ...,
        initial_delay: timedelta = ...,
        *,
        retry_on: Callable[[TerminalError], bool] | None = None,
    ) -> T: ...
    @overload
    async def retry(
        self,
        body: Callable[[int], T],
        max_attempts: int = ...,
        initial_delay: timedelta = ...,
        *,
        retry_on: Callable[[TerminalError], bool] | None = None,
    ) -> T: ...
    async def retry(
        self,
        body: Callable[[int], Awaitable[T] | T],
        max_attempts: int = MAX_ATTEMPTS,
        initial_delay: timedelta = timedelta(seconds=1),
        *,
        retry_on: Callable[[TerminalError], bool] | None = None,
    ) -> T:
        """Try the body until it succeeds, with a durable sleep between attempts, doubling up to 5 minutes.

        Transient failures never get here: the engine retries them inside the run or the called handler. What does are
        terminal errors of calls and runs, among them those of runs whose attempts are used up, and each of them is
        tried again unless ``retry_on`` says otherwise. Only this invocation's own cancel is not.

        Args:
            body: Given the attempt's number, from 0; its result is returned.
            max_attempts: Attempts in all; nothing or less means the default.
            initial_delay: Wait after the first failure.
            retry_on: Tells which errors are worth another attempt; another one is raised as it is.

        Raises:
            RetryExhausted: The last attempt failed, too; names attempts and cause, and keeps the cause's metadata.
            TerminalError: An error that is not worth another attempt.
            Cancelled: This invocation was cancelled.
        """
        attempts = max_attempts if max_attempts > 0 else MAX_ATTEMPTS
        delay = initial_delay
        attempt = 0
        while True:
            try:
                return cast("T", await _result_of(body, attempt))
            except TerminalError as error:
                if is_own_cancel(error) or (retry_on is not None and not retry_on(error)):
                    raise
                attempt += 1
                if attempt >= attempts:
                    raise RetryExhausted(attempts, error) from error
                failure = error.message
            log.warning("workflow.retry", attempt=attempt, of=attempts, error=failure, again_in=delay.total_seconds())
            await self._timer.sleep(min(delay, LONGEST_DELAY), f"retry {attempt}")
            delay = min(delay * 2, LONGEST_DELAY)

    @overload
    async def for_each(self, items: Sequence[T], body: Callable[[T, int], Awaitable[R]]) -> list[R]: ...
    @overload
    async def for_each(self, items: Sequence[T], body: Callable[[T, int], R]) -> list[R]: ...
    async def for_each(self, items: Sequence[T], body: Callable[[T, int], Awaitable[R] | R]) -> list[R]:
        """Run the body for each item, one after the other.

        Args:
            items: The items, in an order that each replay repeats.
            body: Given the item and its index.

        Returns:
            What the body returned, in the items' order.

        Raises:
            InvalidInput: The items have no order, as a set.
            LoopLimitReached: There are more items than iterations may be; nothing was done.
            LoopFailed: The body ended with a terminal error; names the index, keeps status and metadata.
            Cancelled: This invocation was cancelled.
        """
        if isinstance(items, Set):
            raise InvalidInput("for_each: a set has no order that a replay could repeat; give it one, as with sorted()")
        if len(items) > self.max_iterations:
            raise LoopLimitReached(
                f"workflow loop exceeded max iterations: {self.max_iterations}; for_each was given {len(items)} items",
                metadata={"iterations": "0"},
            )
        return [
            cast("R", await _named(f"foreach failed at index {index}", index, body, item, index))
            for index, item in enumerate(items)
        ]


async def _named(what: str, iteration: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, and say in the error where it failed."""
    try:
        return await _result_of(function, *args)
    except TerminalError as error:
        if is_own_cancel(error):
            raise
        raise LoopFailed(what, iteration, error) from error


async def _result_of(function: Callable[..., Any], *args: Any) -> Any:
    result = function(*args)
    return await result if inspect.isawaitable(result) else result
