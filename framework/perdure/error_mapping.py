"""Which exceptions of other libraries are final, and which are worth another attempt: said once, in one place.

    errors = ErrorMapping({IntegrityError: Conflict, httpx.HTTPStatusError: by_status, httpx.TransportError: None})
    payments = DataPlaneService("Payments", errors=errors)

Restate retries whatever isn't a terminal error, for as long as its policy says. A duplicate key or a declined card
stays as it is, however often it is tried, so it should be terminal; a lost connection shouldn't.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from restate.exceptions import RetryableError

from perdure._runtime.sdk import is_interruption
from perdure.errors import ConfigurationError, PerdureTerminalError, TerminalError

Rule = type[PerdureTerminalError] | Callable[[Any], Exception | None] | None
"""What becomes of an exception: a terminal error of this class; what a function makes of it; None: it is retried."""


class ErrorMapping:
    """Turns exceptions into terminal errors, by their class. The rule of the nearest base class counts.

    A terminal error made by class has the exception's text as its message, and its class as ``cause`` in the metadata.
    A function is given the exception, and returns the error to raise: a terminal one, a `RetryableError` of the SDK
    that says when to try again, or None to leave it to the retries. Errors that are terminal or retryable already are
    left alone, whatever the rules say, and so is what only ends an attempt, such as a lost connection.

    Args:
        rules: What becomes of which exceptions. A subclass given with None is left to the retries.

    Raises:
        ConfigurationError: A rule that can't work.
    """

    def __init__(self, rules: Mapping[type[Exception], Rule]) -> None:
        for kind, rule in rules.items():
            if not _is_exception(kind):
                raise ConfigurationError(f"ErrorMapping: {kind!r} is no exception class")
            if rule is not None and not _is_rule(rule):
                raise ConfigurationError(
                    f"ErrorMapping: {kind.__name__} can't become {rule!r}; give a terminal error's class, a function, "
                    "or None to leave it to the retries"
                )
        self._rules = dict(rules)

    def translate(self, error: Exception) -> Exception:
        """Return the error to raise in place of another one; the same one when no rule is for it.

        Args:
            error: What was raised.
        """
        if isinstance(error, TerminalError | RetryableError) or is_interruption(error):
            return error
        kind = next((each for each in type(error).__mro__ if each in self._rules), None)
        rule = None if kind is None else self._rules[kind]
        if rule is None:
            return error
        if isinstance(rule, type):
            return _terminal(rule, error)
        made: Exception | None = rule(error)
        return error if made is None else made


def _terminal(kind: type[PerdureTerminalError], error: Exception) -> PerdureTerminalError:
    return kind(str(error) or type(error).__name__, metadata={"cause": type(error).__name__})


def _is_exception(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


def _is_rule(rule: Any) -> bool:
    if isinstance(rule, type):
        # Not those that are made from the error that caused them.
        return issubclass(rule, PerdureTerminalError) and "metadata" in inspect.signature(rule).parameters
    return callable(rule)


_NOTHING = nullcontext()
_current: ContextVar[ErrorMapping | None] = ContextVar("perdure_error_mapping", default=None)


def current_mapping() -> ErrorMapping | None:
    """Return the mapping of the handler that is running; runs use it that have none of their own."""
    return _current.get()


def mapped_errors(mapping: ErrorMapping | None) -> AbstractContextManager[None]:
    """Translate what leaves a block, and the runs in it, by a mapping.

    Args:
        mapping: The mapping; None leaves everything as it is.
    """
    return _NOTHING if mapping is None else _mapped(mapping)


@contextmanager
def _mapped(mapping: ErrorMapping) -> Iterator[None]:
    token = _current.set(mapping)
    try:
        yield
    except Exception as error:
        translated = mapping.translate(error)
        if translated is error:
            raise
        raise translated from error
    finally:
        _current.reset(token)
