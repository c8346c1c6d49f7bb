"""Durable loops with an iteration limit, and errors that name the failed iteration.

Each iteration adds journal entries, which every replay repeats. A loop that runs for months belongs in a virtual object
that sends itself the next iteration, as `perdure.schedules` does.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Awaitable, Callable, Sequence, Set
from datetime import timedelta
from typing import Any, Final, TypeVar, cast, overload

import restate

from perdure._runtime.waiting import is_own_cancel
from perdure.errors import InvalidInput, LoopFailed, LoopLimitReached, RetryExhausted, TerminalError, message_of
from perdure.observability.logging import get_logger
from perdure.retry import SHORTEST, RetryPolicy
from perdure.timers import WorkflowTimer

T = TypeVar("T")
R = TypeVar("R")

MAX_ITERATIONS: Final = 10_000
MAX_ATTEMPTS: Final = 3
_MAX_DELAY: Final = timedelta(minutes=5)

log = get_logger("perdure.workflow")


class WorkflowLoop:
    """Loops with an iteration limit.

    Conditions and bodies are functions or coroutine functions. Their decisions must depend on journaled values only:
    state, promises, calls, runs, `Time`.

    A terminal error fails the iteration. The engine retries other errors, and a cancel of this invocation passes
    through unchanged.

    Args:
        ctx: The handler's context.
        max_iterations: Iteration limit of one loop; 0 or less means the default.

    Example:
        receipt = await WorkflowLoop(ctx).retry(lambda attempt: ServiceClient(ctx, printer.print_page).call(page))
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
            condition: Evaluated before each iteration.
            body: Receives the number of the iteration, from 0.

        Returns:
            The number of iterations.

        Raises:
            LoopLimitReached: The condition still holds after ``max_iterations``.
            LoopFailed: Condition or body ended with a terminal error. Names the iteration, keeps status and metadata.
            Cancelled: This invocation was cancelled.
        """
        iteration = 0
        while await _call(f"loop condition failed at iteration {iteration}", iteration, condition):
            if iteration >= self.max_iterations:
                raise LoopLimitReached(
                    f"workflow loop exceeded max iterations: {self.max_iterations}",
                    metadata={"iterations": str(iteration)},
                )
            await _call(f"loop body failed at iteration {iteration}", iteration, body, iteration)
            iteration += 1
        return iteration

    @overload  # from ``Awaitable[T] | T``, mypy infers nothing
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
        """Repeat the body until it succeeds, with a durable sleep between attempts that doubles up to 5 minutes.

        The engine retries transient failures inside the run or the called handler. This loop retries terminal errors
        of calls and runs, including runs whose attempts are used up.

        Args:
            body: Receives the number of the attempt, from 0.
            max_attempts: Attempts in total; 0 or less means the default.
            initial_delay: Wait after the first failure.
            retry_on: Decides which errors are retried; all by default, except a cancel of this invocation.

        Returns:
            The body's result.

        Raises:
            RetryExhausted: The last attempt failed. Names attempts and cause, and keeps the cause's metadata.
            TerminalError: An error that ``retry_on`` does not accept.
            Cancelled: This invocation was cancelled.
        """
        attempts = max_attempts if max_attempts > 0 else MAX_ATTEMPTS
        first = min(max(initial_delay, SHORTEST), _MAX_DELAY)
        policy = RetryPolicy(first, max_interval=_MAX_DELAY, max_attempts=attempts)
        for attempt in itertools.count(1):
            try:
                return cast("T", await _result_of(body, attempt - 1))
            except TerminalError as error:
                if is_own_cancel(error) or (retry_on is not None and not retry_on(error)):
                    raise
                if not policy.permits(attempt):
                    raise RetryExhausted(attempts, error) from error
                failure = message_of(error)
            delay = policy.delay_after(attempt)
            log.warning("workflow.retry", attempt=attempt, of=attempts, error=failure, delay=delay.total_seconds())
            await self._timer.sleep(delay, f"retry {attempt}")
        raise AssertionError("unreachable")

    @overload
    async def for_each(self, items: Sequence[T], body: Callable[[T, int], Awaitable[R]]) -> list[R]: ...
    @overload
    async def for_each(self, items: Sequence[T], body: Callable[[T, int], R]) -> list[R]: ...
    async def for_each(self, items: Sequence[T], body: Callable[[T, int], Awaitable[R] | R]) -> list[R]:
        """Run the body for each item, sequentially.

        Args:
            items: The items, in the same order at every replay.
            body: Receives the item and its index.

        Returns:
            The results, in the order of the items.

        Raises:
            InvalidInput: The items are a set, which has no order.
            LoopLimitReached: There are more items than ``max_iterations``; the body did not run.
            LoopFailed: The body ended with a terminal error. Names the index, keeps status and metadata.
            Cancelled: This invocation was cancelled.
        """
        if isinstance(items, Set):
            raise InvalidInput("for_each: a set has no order that a replay can repeat; pass sorted(items)")
        if len(items) > self.max_iterations:
            raise LoopLimitReached(
                f"workflow loop exceeded max iterations: {self.max_iterations}; for_each received {len(items)} items",
                metadata={"iterations": "0"},
            )
        return [
            cast("R", await _call(f"foreach failed at index {index}", index, body, item, index))
            for index, item in enumerate(items)
        ]


async def _call(message: str, iteration: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of an iteration; a terminal error of it becomes `LoopFailed`."""
    try:
        return await _result_of(function, *args)
    except TerminalError as error:
        if is_own_cancel(error):
            raise
        raise LoopFailed(message, iteration, error) from error


async def _result_of(function: Callable[..., Any], *args: Any) -> Any:
    result = function(*args)
    return await result if inspect.isawaitable(result) else result
