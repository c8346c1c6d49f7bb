"""Texts that a handler sends to the engine: failures and display names are cleaned, names that identify are checked.

The SDK accepts UTF-8 only, and a status of 16 bits. It raises an error for other values while it reports the end of a
run or an attempt, which then never ends, or while it writes a journal entry, which is then retried for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from restate.vm import Failure, Run, RunRetryConfig, VMWrapper

from perdure._runtime.plain_text import display_name, message_text, shorten
from perdure.errors import InvalidInput, clean_metadata, clean_status

MAX_NAME_SIZE: Final = 1024 * 1024
"""Longest name of a state entry or promise, key or header, in bytes."""

_STACKTRACE_LENGTH: Final = 32_000


def check_name(kind: str, name: object, limit: int = MAX_NAME_SIZE, *, required: bool = False) -> str:
    """Return a name that the engine can store unchanged, so that different names stay different.

    Args:
        kind: What the name belongs to, for the error.
        name: The name.
        limit: Longest name, in bytes.
        required: Refuse the empty name.

    Raises:
        InvalidInput: The name is no text, is too long, or contains surrogates.
    """
    if not isinstance(name, str):
        raise InvalidInput(f"{kind} must be text; got {type(name).__name__}")
    try:
        size = len(name) if name.isascii() else len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{kind} {message_text(name, 100)!r} contains a surrogate at position {error.start + 1}, which is not "
            "UTF-8: decode or escape the text first"
        ) from error
    if size > limit:
        raise InvalidInput(f"{kind} {shorten(name, 100)!r} has {size:,} bytes; at most {limit:,} are allowed")
    if required and not name:
        raise InvalidInput(f"{kind}: the name must not be empty")
    return name


def _optional(name: str | None) -> str | None:
    return None if name is None else display_name(name)


def _clean(failure: Failure) -> Failure:
    return Failure(
        clean_status(failure.code),
        message_text(failure.message),
        None if failure.stacktrace is None else message_text(failure.stacktrace, _STACKTRACE_LENGTH),
        clean_metadata(failure.metadata) or None,
    )


def _delay(delay: object) -> timedelta | None:
    return max(delay, timedelta(0)) if isinstance(delay, timedelta) else None


def _check_call(
    key: str | None,
    idempotency_key: str | None = None,
    headers: Sequence[tuple[str, str]] | None = None,
    **_: Any,
) -> None:
    if key is not None:
        check_name("key", key)
    if idempotency_key is not None:
        check_name("idempotency key", idempotency_key)
    for name, value in headers or ():
        check_name(f"the value of header '{check_name('header', name)}'", value)


class CleanTexts(VMWrapper):
    """The SDK's state machine, with cleaned failures and checked names."""

    # --- failures -----------------------------------------------------------------------------------------------------

    def notify_error(self, error: str, stacktrace: str, delay_override: timedelta | None = None) -> None:
        super().notify_error(message_text(error), message_text(stacktrace, _STACKTRACE_LENGTH), _delay(delay_override))

    def sys_write_output_failure(self, output: Failure) -> None:
        super().sys_write_output_failure(_clean(output))

    def propose_run_completion_failure(self, handle: int, output: Failure) -> None:
        super().propose_run_completion_failure(handle, _clean(output))

    def propose_run_completion_transient(
        self, handle: int, failure: Failure, attempt_duration_ms: int, config: RunRetryConfig
    ) -> None:
        super().propose_run_completion_transient(handle, _clean(failure), attempt_duration_ms, config)

    def propose_run_completion_transient_with_delay_override(  # noqa: PLR0917 - the SDK's signature
        self,
        handle: int,
        failure: Failure,
        attempt_duration_ms: int,
        delay_override: timedelta | None,
        max_retry_attempts_override: int | None,
        max_retry_duration_override: timedelta | None,
    ) -> None:
        super().propose_run_completion_transient_with_delay_override(
            handle,
            _clean(failure),
            attempt_duration_ms,
            _delay(delay_override),
            max_retry_attempts_override,
            max_retry_duration_override,
        )

    def sys_reject_awakeable(self, name: str, failure: Failure) -> None:
        super().sys_reject_awakeable(check_name("the ID of a signal", name), _clean(failure))

    def sys_reject_signal(self, invocation_id: str, signal_name: str, failure: Failure) -> None:
        super().sys_reject_signal(invocation_id, check_name("signal", signal_name), _clean(failure))

    def sys_complete_promise_failure(self, name: str, failure: Failure) -> int:
        return super().sys_complete_promise_failure(check_name("promise", name), _clean(failure))

    # --- names for display --------------------------------------------------------------------------------------------

    def sys_run(self, name: str) -> Run:
        return super().sys_run(display_name(name))

    def sys_sleep(self, millis: int, name: str | None = None) -> Any:
        return super().sys_sleep(millis, _optional(name))

    # --- names that identify ------------------------------------------------------------------------------------------

    def sys_get_state(self, name: str, entry_name: str | None = None) -> int:
        return super().sys_get_state(check_name("state", name), _optional(entry_name))

    def sys_set_state(self, name: str, value: bytes, entry_name: str | None = None) -> None:
        super().sys_set_state(check_name("state", name), value, _optional(entry_name))

    def sys_clear_state(self, name: str, entry_name: str | None = None) -> None:
        super().sys_clear_state(check_name("state", name), _optional(entry_name))

    def sys_get_promise(self, name: str) -> int:
        return super().sys_get_promise(check_name("promise", name))

    def sys_peek_promise(self, name: str) -> int:
        return super().sys_peek_promise(check_name("promise", name))

    def sys_complete_promise_success(self, name: str, value: bytes) -> int:
        return super().sys_complete_promise_success(check_name("promise", name), value)

    def sys_signal(self, signal_name: str) -> int:
        return super().sys_signal(check_name("signal", signal_name))

    def sys_resolve_signal(self, invocation_id: str, signal_name: str, value: bytes) -> None:
        super().sys_resolve_signal(invocation_id, check_name("signal", signal_name), value)

    def sys_resolve_awakeable(self, name: str, value: bytes) -> None:
        super().sys_resolve_awakeable(check_name("the ID of a signal", name), value)

    def sys_call(
        self, service: str, handler: str, parameter: bytes, key: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        _check_call(key, **kwargs)
        return super().sys_call(service, handler, parameter, key, *args, **kwargs)

    def sys_send(
        self, service: str, handler: str, parameter: bytes, key: str | None = None, *args: Any, **kwargs: Any
    ) -> int:
        _check_call(key, **kwargs)
        return super().sys_send(service, handler, parameter, key, *args, **kwargs)
