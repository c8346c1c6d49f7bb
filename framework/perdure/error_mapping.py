"""Translation of exceptions of other libraries to terminal errors.

Restate retries every error that is not terminal. Retries help with a lost connection, but not with a duplicate key or a
declined card.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, cast

from restate.exceptions import RetryableError

from perdure._runtime.failures import failure_of, is_interruption
from perdure._runtime.outcomes import as_exception
from perdure._runtime.plain_text import text_of
from perdure._runtime.retry_after import retry_after
from perdure._runtime.time_scale import scaled
from perdure.errors import ConfigurationError, PerdureTerminalError, TerminalError

Rule = type[PerdureTerminalError] | Callable[[Any], Exception | None] | None
"""A terminal error class, a function that returns the error to raise, or None to retry the exception."""


class ErrorMapping:
    """Translates exceptions to terminal errors by their class. The rule of the nearest base class applies.

    A class as a rule makes a terminal error with the exception's text as message and its class as ``cause`` in the
    metadata. A function as a rule receives the exception. It returns a terminal error, the SDK's `RetryableError`, or
    None to retry the exception. Terminal and retryable errors pass unchanged, and so do the SDK's interruptions of an
    attempt. The exceptions of a group are translated one by one, and summed up in one error.

    An exception that is retried waits as long as the ``Retry-After`` header of its HTTP response asks, for example the
    response of an `httpx.HTTPStatusError`.

    Example:
        errors = ErrorMapping({IntegrityError: Conflict, httpx.HTTPStatusError: by_status, httpx.TransportError: None})
        payments = DataPlaneService("Payments", errors=errors)

    Args:
        rules: Exception classes and their rules. None excludes a subclass from the rule of its base class.
        max_retry_after: The longest wait that a ``Retry-After`` header may ask for.

    Raises:
        ConfigurationError: A rule is invalid.
    """

    def __init__(
        self, rules: Mapping[type[Exception], Rule], *, max_retry_after: timedelta = timedelta(minutes=5)
    ) -> None:
        for kind, rule in rules.items():
            if not _is_exception(kind):
                raise ConfigurationError(f"ErrorMapping: {kind!r} is not an exception class")
            if rule is not None and not _is_rule(rule):
                raise ConfigurationError(
                    f"ErrorMapping: {rule!r} is not a rule for {kind.__name__}; use a terminal error class, a "
                    "function, or None to retry the exception"
                )
        self._rules = dict(rules)
        self._max_retry_after = max_retry_after

    def translate(self, error: Exception) -> Exception:
        """Return the error to raise instead of an exception; the exception itself if no rule applies."""
        if isinstance(error, TerminalError | RetryableError) or is_interruption(error):
            return error
        opened = failure_of(error, self.translate)
        if opened is not error:
            return cast("Exception", opened)
        rule = next((self._rules[kind] for kind in type(error).__mro__ if kind in self._rules), None)
        if rule is None:
            return self._retried(error)
        if isinstance(rule, type):
            return _terminal(rule, error)
        try:
            translated: Exception | None = rule(error)
        except BaseException as failed:  # noqa: BLE001 - of the user's rule
            raise as_exception(failed)  # noqa: B904 - the same error, or its cause is set
        return self._retried(error) if translated is None else translated

    def _retried(self, error: Exception) -> Exception:
        headers = getattr(getattr(error, "response", None), "headers", None)
        asked = retry_after(headers, self._max_retry_after) if isinstance(headers, Mapping) else None
        if not asked:
            return error
        return RetryableError(f"{type(error).__name__}: {text_of(error)}", retry_after=scaled(asked))


def _terminal(kind: type[PerdureTerminalError], error: Exception) -> PerdureTerminalError:
    return kind(text_of(error) or type(error).__name__, metadata={"cause": type(error).__name__})


def _is_exception(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


def _is_rule(rule: Any) -> bool:
    if isinstance(rule, type):
        # Classes such as StepFailed are constructed from their cause instead of metadata.
        return issubclass(rule, PerdureTerminalError) and "metadata" in inspect.signature(rule).parameters
    return callable(rule)


_current: ContextVar[ErrorMapping | None] = ContextVar("perdure_error_mapping", default=None)


def current_mapping() -> ErrorMapping | None:
    """Return the mapping of the running handler, the default of its runs."""
    return _current.get()


class mapped_errors:  # noqa: N801 - a context manager; a generator would cost several times as much per run
    """Translate the exceptions of a block and of its runs, and open exception groups.

    Args:
        mapping: The translation; None translates nothing.
    """

    def __init__(self, mapping: ErrorMapping | None) -> None:
        self._mapping = mapping

    def __enter__(self) -> None:
        self._token = _current.set(self._mapping or _current.get())

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        _current.reset(self._token)
        if error is None or is_interruption(error):
            return
        translate = None if self._mapping is None else self._mapping.translate
        translated = failure_of(error, translate)
        if translated is error and translate is not None and isinstance(error, Exception):
            translated = translate(error)
        if translated is error:
            return
        if isinstance(error, BaseExceptionGroup):  # which may contain the translated error
            raise translated
        raise translated from error
