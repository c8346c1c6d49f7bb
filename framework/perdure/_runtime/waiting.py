"""Waits that survive a cancel of this invocation, and recognition of such a cancel.

The engine reports a cancel, a kill and an application's 409 with the same code. Perdure's contexts raise `Cancelled`
only for a cancel of this invocation (see `perdure._runtime.sdk.guard`). A future that raised it from a plain await
never settles; `restate.wait_completed` can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import restate

from perdure.errors import Cancelled, DeadlineExceeded, PerdureTerminalError, StepFailed, TerminalError


async def until_done(future: restate.RestateDurableFuture[Any], operation: str) -> None:
    """Wait until a future has a result or an error. Raises `Cancelled` with the operation's name."""
    with _cancel_named(operation):
        await restate.wait_completed(future)


async def done_before(
    future: restate.RestateDurableFuture[Any], limit: restate.RestateDurableFuture[Any], operation: str
) -> bool:
    """Wait for a future until a timer fires, and tell whether the future is done. Raises `Cancelled` as above."""
    return future in await any_done((future, limit), operation)


async def any_done(
    futures: Sequence[restate.RestateDurableFuture[Any]], operation: str
) -> list[restate.RestateDurableFuture[Any]]:
    """Wait until at least one future is done, and return those that are. Raises `Cancelled` as above."""
    with _cancel_named(operation):
        done, _ = await restate.wait_completed(*futures)
    return done


@contextmanager
def _cancel_named(operation: str) -> Iterator[None]:
    try:
        yield
    except TerminalError as error:
        if _is_refusal(error):
            raise
        if isinstance(error, DeadlineExceeded):
            raise DeadlineExceeded(f"{error.message}, during {operation}", metadata={"during": operation}) from error
        raise Cancelled(f"cancelled during {operation}", metadata={"during": operation}) from error


async def settle(future: restate.RestateDurableFuture[Any]) -> None:
    """Wait until a future has a result or an error, ignoring cancels."""
    while True:
        try:
            await restate.wait_completed(future)
        except TerminalError as error:
            if _is_refusal(error):
                raise
            continue
        return


def _is_refusal(error: TerminalError) -> bool:
    """Return whether a wait was refused, inside a run or in another task; otherwise, its error is a cancel."""
    return isinstance(error, PerdureTerminalError) and not isinstance(error, Cancelled)


def is_own_cancel(error: TerminalError) -> bool:
    """Return whether an error is the cancel of this invocation. A callee's cancel arrives as a plain terminal error."""
    return isinstance(error, Cancelled)


def has_own_cancel(error: BaseException) -> bool:
    """Return whether an error is the cancel of this invocation, or was raised while handling it.

    The search ends at a `StepFailed`, whose causes belong to the callee.
    """
    visited: set[int] = set()
    current: BaseException | None = error
    while current is not None and not isinstance(current, StepFailed) and id(current) not in visited:
        if isinstance(current, TerminalError) and is_own_cancel(current):
            return True
        visited.add(id(current))
        current = current.__cause__ or current.__context__
    return False
