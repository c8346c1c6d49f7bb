"""Outcomes of user code: tasks and threads return an error as a value, so that it can neither end nor hang them.

A `SystemExit` out of a task ends the event loop, and a `StopIteration` out of a thread never arrives.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

from restate.exceptions import SdkInternalBaseException

from perdure._runtime.plain_text import shorten, text_of
from perdure.errors import Aborted

Outcome = tuple[Any, BaseException | None]
"""Result and error."""

MAX_TEXT: Final = 300


def as_exception(error: BaseException) -> BaseException:
    """Return `Aborted` for an exception that tasks, threads or the SDK would not report as a failure.

    Groups and the SDK's own exceptions stay as they are.
    """
    if isinstance(error, SdkInternalBaseException | BaseExceptionGroup):
        return error
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    aborted = Aborted(f"aborted by {describe(error)}")
    aborted.__cause__ = error
    return aborted


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


def start(call: Callable[[], Awaitable[Any]]) -> asyncio.Task[Outcome]:
    """Start a task that returns the outcome of user code."""
    return asyncio.create_task(_outcome(call))


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


def result_of(task: asyncio.Task[Outcome]) -> Any:
    """Return the result of a task that has ended, or raise its error."""
    # A task that cancels itself ends as cancelled even if its code returns.
    result, error = (None, asyncio.CancelledError()) if task.cancelled() else task.result()
    if error is not None:
        raise as_exception(error)
    return result


def describe(error: BaseException) -> str:
    """Return class and message of an error, shortened."""
    text = text_of(error)
    name = type(error).__name__
    return shorten(f"{name}: {text}", MAX_TEXT) if text else name
