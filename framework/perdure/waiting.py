"""Waiting so that a cancel of this invocation can be told from everything else that ends with status 409.

Cancel, kill and an application's own 409 differ in nothing but the text (engine-facts). `restate.wait_completed` raises
only for this invocation's own cancel, and it can be repeated, which a plain await can't: after it raised, the future no
longer settles.
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


async def settle(future: restate.RestateDurableFuture[Any]) -> None:
    """Wait for a future to have a result, whatever further cancels say. Cancels are finite, so this ends."""
    while True:
        try:
            await restate.wait_completed(future)
        except TerminalError:
            continue
        return


def is_own_cancel(error: TerminalError) -> bool:
    """Tell if an error is this invocation's cancel, as far as that can be told.

    A plain await of the SDK raises an error of status 409 with the text ``cancelled`` for it; a callee that was
    cancelled looks the same. Taking the second for the first is harmless: the rollback is handed over either way.
    """
    return isinstance(error, Cancelled) or (
        type(error) is TerminalError and error.status_code == 409 and error.message == "cancelled"
    )


def has_own_cancel(error: BaseException) -> bool:
    """Tell if an error is this invocation's cancel, or was raised while that was handled.

    An orchestration that turns every terminal error into one of its own must not suspend after a cancel, either. What
    is behind a `StepFailed` is the callee's, so the search ends there.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, StepFailed):
        if isinstance(seen, TerminalError) and is_own_cancel(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
