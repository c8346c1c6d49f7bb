"""User code in tasks of its own, so that no exception of it can end or hang an attempt.

In the task that awaits it, the code could cancel the attempt, and a cancel of its own would look like the server's. A
`SystemExit` out of a task ends the event loop, and a `StopIteration` out of a thread never arrives. So each task and
thread returns its error as a value.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from perdure._runtime import sdk
from perdure._runtime.failures import as_exception
from perdure._runtime.sdk import is_interruption
from perdure.errors import Cancelled, is_terminal

T = TypeVar("T")

Outcome = tuple[Any, BaseException | None]

CANCEL_GRACE: Final = 5.0
"""Seconds that an action may go on after the cancel of its invocation, before its task is cancelled."""

CLEANUP_GRACE: Final = 1.0
"""Seconds that a cancelled task may take to end."""


async def run_handler(call: Callable[[], Awaitable[T]]) -> T:
    """Run the code of a handler in a task that may use the current context.

    Args:
        call: Starts the code.

    Raises:
        Aborted: The code raised an exception that is not an `Exception`.
        PerdureTerminalError: The code used the context in another task, even if it caught the error.
    """
    task = asyncio.create_task(_outcome(call))
    with sdk.owned_by(task) as owner:
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # the server ends the attempt
            owner.ends = True
            task.cancel()
            raise
    try:
        result: T = _result(task)
    except Exception as error:
        if owner.refusal is None or is_interruption(error) or is_terminal(error):
            raise
        raise owner.refusal from error
    if owner.refusal is not None:
        raise owner.refusal
    return result


async def perform(action: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Run an action: a coroutine function here, another function in a thread."""
    if inspect.iscoroutinefunction(action) or inspect.iscoroutinefunction(
        getattr(action, "__call__", None)  # noqa: B004 - the object may have an async __call__
    ):
        return await action(*args)
    result, error = await asyncio.to_thread(_outcome_in_thread, action, args)
    if error is not None:
        raise as_exception(error)
    return await result if inspect.isawaitable(result) else result  # lambda: coroutine()


class Supervised:
    """An action in a task of its own, which a cancel of the invocation ends after a time limit.

    Args:
        name: The action's name, for errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_cancelled(self) -> bool:
        """Tell whether `cancel` was called."""
        return self._cancelled.done()

    def cancel(self) -> None:
        """End waits and, after the time limit, the action."""
        if not self._cancelled.done():
            self._cancelled.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Wait for a time, or until the cancel."""
        await asyncio.wait({self._cancelled}, timeout=max(0.0, seconds))

    async def run(self, action: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run the action and return its result.

        Raises:
            Aborted: The action raised an exception that is not an `Exception`.
            Cancelled: The invocation was cancelled, and the action did not start, or did not end in time. A thread, or
                a task that ignores its cancel, continues.
        """
        if self.is_cancelled:
            raise Cancelled(f"cancelled before '{self._name}' started")
        task = asyncio.create_task(_outcome(lambda: perform(action, args)))
        ends: set[asyncio.Future[Any]] = {task, self._cancelled}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=CANCEL_GRACE)
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=CLEANUP_GRACE)
                if task.done() and not task.cancelled() and task.result()[1] is None:
                    return _result(task)
                raise Cancelled(
                    f"cancelled: '{self._name}' did not end within {CANCEL_GRACE:g} s, so its outcome is unknown"
                )
        except asyncio.CancelledError:  # the attempt ends
            task.cancel()
            raise
        return _result(task)


async def _outcome(call: Callable[[], Awaitable[Any]]) -> Outcome:
    try:
        return await call(), None
    except BaseException as error:  # noqa: BLE001 - raised by the awaiting task
        return None, error


def _outcome_in_thread(action: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    try:
        return action(*args), None
    except BaseException as error:  # noqa: BLE001 - raised by the awaiting task
        return None, error


def _result(task: asyncio.Task[Outcome]) -> Any:
    """Return the result of a task that has ended, or raise its error."""
    # A task that cancels itself ends as cancelled even if its code returns.
    result, error = (None, asyncio.CancelledError()) if task.cancelled() else task.result()
    if error is not None:
        raise as_exception(error)
    return result
