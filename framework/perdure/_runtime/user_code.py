"""User code in tasks of its own, so that no exception of it can end or hang an attempt.

In the task that awaits it, the code could cancel the attempt, and a cancel of its own would look like the server's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

import restate

from perdure._runtime import sdk
from perdure._runtime.failures import is_interruption
from perdure._runtime.late_cancel import LateCancel
from perdure._runtime.outcomes import Outcome, perform, result_of, start
from perdure.errors import Cancelled, is_terminal

T = TypeVar("T")

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
        Cancelled: The invocation was cancelled while the code ran something else than a durable operation.
        PerdureTerminalError: The code used the context in another task, even if it caught the error.
    """
    task = start(call)
    with sdk.owned_by(task) as owner:
        # A durable wait would receive the cancel.
        late_cancel = LateCancel(owner.invocation_id, lambda: not owner.waits)
        try:
            await late_cancel.until_found({task})
            if late_cancel.is_known and not await _ends_in_time(task):
                raise Cancelled(f"cancelled; the handler's code did not end within {CANCEL_GRACE:g} s")
        except asyncio.CancelledError:  # the server ends the attempt
            owner.ends = True
            task.cancel()
            raise
    result, refusal = None, owner.refusal
    try:
        result = result_of(task)
    except Exception as error:
        if _is_asyncio_wait(error):
            refusal = owner.refuse("a durable future was passed to asyncio.wait")
        is_certain = refusal is None or is_interruption(error) or is_terminal(error)
        if is_certain and not isinstance(refusal, sdk.WaitEndedByTimeout):
            raise
    if refusal is not None:
        raise refusal
    return cast("T", result)


class Supervised:
    """An action in a task of its own, which a cancel of the invocation ends after a time limit.

    Args:
        name: The action's name, for errors.
        late_cancel: The cancel that the engine may be unable to deliver.
    """

    def __init__(self, name: str, late_cancel: LateCancel | None = None) -> None:
        self._name = name
        self._late_cancel = late_cancel or LateCancel("", bool)
        self._cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[Outcome] | None = None

    @property
    def is_cancelled(self) -> bool:
        """Return whether the invocation is cancelled."""
        return self._cancelled.done() or self.cancel_is_late

    @property
    def cancel_is_late(self) -> bool:
        """Return whether only the next attempt of the invocation receives the cancel."""
        return self._late_cancel.is_known

    def cancel(self) -> None:
        """End waits and, after the time limit, the action."""
        if not self._cancelled.done():
            self._cancelled.set_result(None)

    async def settle(self) -> None:
        """Cancel the action and wait for its end, without the engine."""
        self.cancel()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=CANCEL_GRACE + CLEANUP_GRACE)

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
        task = self._task = start(lambda: perform(action, args))
        try:
            await self._late_cancel.until_found({task, self._cancelled})
            if not await _ends_in_time(task):
                raise Cancelled(
                    f"cancelled: '{self._name}' did not end within {CANCEL_GRACE:g} s, so its outcome is unknown"
                )
        except asyncio.CancelledError:  # the attempt ends
            task.cancel()
            raise
        return result_of(task)


def _is_asyncio_wait(error: Exception) -> bool:
    """Return whether asyncio has failed to treat a durable future as one of its own."""
    if not isinstance(error, AttributeError) or error.name != "add_done_callback":
        return False
    return isinstance(getattr(error.obj, "future", error.obj), restate.RestateDurableFuture)


async def _ends_in_time(task: asyncio.Task[Outcome]) -> bool:
    """Give a task time to end, cancel it then, and tell whether it has its own result or error."""
    if not task.done():
        await asyncio.wait({task}, timeout=CANCEL_GRACE)
    if task.done():
        return True
    task.cancel()
    await asyncio.wait({task}, timeout=CLEANUP_GRACE)
    return task.done() and not task.cancelled() and task.result()[1] is None
