"""Classification of user code's exceptions: failed attempt, terminal error, or the SDK's end of the attempt."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from restate.exceptions import RetryableError, SdkInternalBaseException
from restate.server_context import DisconnectedException  # noqa: TID251 - perdure._runtime.sdk imports this module

from perdure._runtime.outcomes import as_exception, describe, perform, result_of, start
from perdure.errors import Aborted, Cancelled, PerdureError, TerminalError, causes, message_of, metadata_of

E = TypeVar("E", bound=TerminalError)

_MAX_NAMED: Final = 5


def is_interruption(error: BaseException) -> bool:
    """Return whether an error ends the attempt without a failure: a suspension, a lost connection, a cancelled task."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return True
    for cause in causes(error):  # the handler may have wrapped it
        if isinstance(cause, TerminalError | Aborted):
            return False
        if isinstance(cause, DisconnectedException | SdkInternalBaseException):
            return True
    return False


def failure_of(error: BaseException, translate: Callable[[Exception], Exception] | None = None) -> BaseException:
    """Return the error to raise for an error of user code, with its exception groups opened.

    Args:
        error: The error.
        translate: Translates each exception of a group.
    """
    for cause in causes(error):
        if isinstance(cause, TerminalError):
            return error
        if isinstance(cause, BaseExceptionGroup):
            opened = _sum_up([_translated(leaf, translate) for leaf in _leaves(cause)])
            return opened if cause is error or isinstance(opened, TerminalError) else error
    return error


async def contained(action: Callable[..., Any]) -> Any:
    """Run an action without arguments in a task of its own, and return its result or raise its error.

    Raises:
        Aborted: The action raised an exception that is not an `Exception`.
    """
    task = start(lambda: perform(action, ()))
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:  # the attempt ends
        task.cancel()
        raise
    try:
        return result_of(task)
    except BaseExceptionGroup as group:
        raise failure_of(group) from None


def with_message(error: E, message: str, **metadata: str) -> E:
    """Return a copy of a terminal error with another message and additional metadata."""
    # Without the constructor, whose parameters are unknown.
    kind = type(error)
    copied = kind.__new__(kind, message)
    copied.__dict__.update(copy.copy(vars(error)))
    copied.args = (message,)
    copied.message = message
    copied.metadata = {**metadata_of(error), **metadata} or None
    return copied


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield as_exception(error)


def _translated(error: BaseException, translate: Callable[[Exception], Exception] | None) -> BaseException:
    return translate(error) if translate is not None and isinstance(error, Exception) else error


def _sum_up(errors: Sequence[BaseException]) -> BaseException:
    """Return one error for several: an interruption, else a terminal error, else one that is retried."""
    for error in errors:
        if is_interruption(error):
            return error
    if len(errors) == 1:
        return errors[0]
    terminal = [cause for error in errors for cause in causes(error) if isinstance(cause, TerminalError)]
    first = next((error for error in terminal if isinstance(error, Cancelled)), None) or next(iter(terminal), None)
    if first is not None:
        others = [error for error in errors if first not in causes(error)]
        return with_message(first, f"{message_of(first)} (and {_listed(others)})") if others else first
    retryable = [error for error in errors if isinstance(error, RetryableError)]
    if retryable:
        delays = [error.retry_after for error in retryable if error.retry_after is not None]
        return RetryableError(_listed(errors), retryable[0].status_code, max(delays, default=None))
    return PerdureError(_listed(errors))


def _listed(errors: Sequence[BaseException]) -> str:
    named = "; ".join(describe(error) for error in errors[:_MAX_NAMED])
    more = f"; and {len(errors) - _MAX_NAMED} more" if len(errors) > _MAX_NAMED else ""
    return f"{len(errors)} {'error' if len(errors) == 1 else 'errors'}: {named}{more}"
