"""Translation of exceptions by ErrorMapping."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
from restate.exceptions import RetryableError, SuspendedException
from restate.server_context import DisconnectedException

from perdure._runtime.time_scale import scaling
from perdure.error_mapping import ErrorMapping, current_mapping, mapped_errors
from perdure.errors import (
    Cancelled,
    ConfigurationError,
    Conflict,
    InvalidInput,
    PerdureTerminalError,
    Refused,
    StepFailed,
    TerminalError,
)


def by_status(error: httpx.HTTPStatusError) -> Exception | None:
    if error.response.status_code == 429:
        return RetryableError("busy")
    return Refused("declined", error.response.status_code) if error.response.is_client_error else None


MAPPING = ErrorMapping(
    {OSError: Conflict, ConnectionError: None, ValueError: InvalidInput, httpx.HTTPStatusError: by_status}
)


def answered(status: int) -> httpx.HTTPStatusError:
    response = httpx.Response(status)
    return httpx.HTTPStatusError("no", request=httpx.Request("GET", "http://x"), response=response)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({"Retry-After": "7"}, 7), ({"Retry-After": "9000"}, 300), ({"Retry-After": "0"}, None), ({}, None)],
)
@pytest.mark.parametrize("mapping", [ErrorMapping({}), ErrorMapping({httpx.HTTPError: None}), MAPPING])
def test_retry_waits_as_response_asks(headers: dict[str, str], expected: int | None, mapping: ErrorMapping):
    error = answered(503)
    error.response.headers.update(headers)
    translated = mapping.translate(error)
    assert isinstance(translated, RetryableError) is (expected is not None)
    if isinstance(translated, RetryableError):
        assert translated.retry_after == timedelta(seconds=expected or 0)
        assert translated.message == "HTTPStatusError: no"


def test_time_scale_shortens_requested_wait():
    error = answered(503)
    error.response.headers["Retry-After"] = "120"
    with scaling(60):
        translated = MAPPING.translate(error)
    assert isinstance(translated, RetryableError)
    assert translated.retry_after == timedelta(seconds=2)


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (FileExistsError("there"), Conflict, 409),
        (UnicodeError("bad text"), InvalidInput, 400),
        (answered(402), Refused, 402),
        (answered(429), RetryableError, 500),
    ],
    ids=repr,
)
def test_apply_rule_of_nearest_base_class(error: Exception, kind: type[Any], status: int):
    translated: Any = MAPPING.translate(error)
    assert type(translated) is kind
    assert translated.status_code == status


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("gone"),  # an OSError with a more specific rule
        KeyError("x"),
        answered(503),
        TerminalError("final"),
        Cancelled("cancelled"),
        RetryableError("later"),
    ],
    ids=repr,
)
def test_keep_exception_without_rule(error: Exception):
    assert MAPPING.translate(error) is error


def test_general_rule_keeps_terminal_errors():
    everything = ErrorMapping({Exception: Conflict})
    cancelled = Cancelled("cancelled")
    assert everything.translate(cancelled) is cancelled
    assert isinstance(everything.translate(KeyError("x")), Conflict)


def test_general_rule_keeps_interruptions():
    # As a terminal error, a lost connection would end an invocation that can continue.
    everything = ErrorMapping({Exception: Conflict})
    wrapped = ValueError("caught everything")
    wrapped.__cause__ = SuspendedException()
    for interruption in (DisconnectedException(), wrapped):
        assert everything.translate(interruption) is interruption


def test_terminal_error_names_its_cause():
    translated: Any = MAPPING.translate(FileExistsError("it is there"))
    assert (translated.message, translated.metadata) == (
        "it is there",
        {"code": "conflict", "cause": "FileExistsError"},
    )
    assert str(MAPPING.translate(FileExistsError())) == "FileExistsError"


@pytest.mark.parametrize(
    "rules",
    [
        {OSError: TerminalError},
        {OSError: StepFailed},
        {OSError: 5},
        {OSError: ValueError},
        {"OSError": Conflict},
        {BaseException: Conflict},
    ],
    ids=repr,
)
def test_reject_invalid_rule(rules: Any):
    with pytest.raises(ConfigurationError, match="ErrorMapping"):
        ErrorMapping(rules)


def test_translate_exception_and_keep_cause():
    cause = FileExistsError("there")
    within = []
    with pytest.raises(Conflict) as translated, mapped_errors(MAPPING):
        raise cause
    with mapped_errors(MAPPING):
        within.append(current_mapping())
    assert within == [MAPPING]
    assert translated.value.__cause__ is cause
    assert current_mapping() is None


def test_untranslated_error_has_no_new_cause():
    error = PerdureTerminalError("final")
    with pytest.raises(PerdureTerminalError) as same, mapped_errors(MAPPING):
        raise error
    assert same.value is error
    assert error.__cause__ is None


def test_no_mapping_translates_nothing():
    with pytest.raises(FileExistsError), mapped_errors(None):
        raise FileExistsError
