"""Waiting so that a cancel of this invocation says what it met, and what it met can still be waited for.

To the engine, a cancel, a kill and an application's own 409 differ in nothing but the text. Perdure's contexts raise
`Cancelled` for this invocation's own cancel (see `perdure._runtime.sdk.guard`), and for nothing else. After a plain
await has raised it, the future no longer settles; `restate.wait_completed` can be repeated.
"""

from __future__ import annotations

from typing import Any

import restate

from perdure.errors import Cancelled, StepFailed, TerminalError


async def until_done(future: restate.RestateDurableFuture[Any], what: str) -> None:
    """Wait for a future to have a result, good or bad.

    Args:
        future: The SDK's future.
        what: What is awaited, for the error.

    Raises:
        Cancelled: This invocation was cancelled meanwhile.
    """
    try:
        await restate.wait_completed(future)
    except TerminalError as error:
        raise Cancelled(f"cancelled during {what}", metadata={"during": what}) from error


async def done_before(
    future: restate.RestateDurableFuture[Any], limit: restate.RestateDurableFuture[Any], what: str
) -> bool:
    """Wait for a future to have a result, but no longer than for another one; tell if the first has it.

    Args:
        future: What is awaited.
        limit: A timer.
        what: What is awaited, for the error.

    Raises:
        Cancelled: This invocation was cancelled meanwhile.
    """
    try:
        done, _ = await restate.wait_completed(future, limit)
    except TerminalError as error:
        raise Cancelled(f"cancelled during {what}", metadata={"during": what}) from error
    return future in done


async def settle(future: restate.RestateDurableFuture[Any]) -> None:
    """Wait for a future to have a result, whatever further cancels say. Cancels are finite, so this ends."""
    while True:
        try:
            await restate.wait_completed(future)
        except TerminalError:
            continue
        return


def is_own_cancel(error: TerminalError) -> bool:
    """Tell if an error is this invocation's own cancel. A callee's comes back as a plain terminal error."""
    return isinstance(error, Cancelled)


def has_own_cancel(error: BaseException) -> bool:
    """Tell if an error is this invocation's cancel, or was raised while that was handled.

    An orchestration that turns every terminal error into one of its own must not suspend after a cancel, either. What
    is behind a `StepFailed` is the callee's, so the search ends there.
    """
    known: set[int] = set()
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, StepFailed) and id(seen) not in known:
        if isinstance(seen, TerminalError) and is_own_cancel(seen):
            return True
        known.add(id(seen))
        seen = seen.__cause__ or seen.__context__
    return False
