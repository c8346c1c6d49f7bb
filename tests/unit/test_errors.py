"""The exception tree: status, code and metadata of each error."""

from __future__ import annotations

import inspect
import re
import traceback
from http import HTTPStatus
from typing import Any, cast
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st
from restate.exceptions import RetryableError

from perdure import errors
from perdure.errors import (
    Cancelled,
    IngressError,
    InvalidInput,
    LoopFailed,
    PerdureError,
    PerdureTerminalError,
    Refused,
    RetryExhausted,
    RunExhausted,
    StepFailed,
    TerminalError,
    causes,
    clean_terminal,
    error_code,
    is_terminal,
    reportable,
)

TERMINAL = [
    value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, PerdureTerminalError) and value is not PerdureTerminalError
]
# The others are constructed from their cause.
SIMPLE = [kind for kind in TERMINAL if "metadata" in inspect.signature(kind).parameters]


def raised_from(cause: BaseException) -> BaseException:
    error = ValueError("wrapped")
    error.__cause__ = cause
    return error


def arrived(error: TerminalError) -> TerminalError:
    """Return the error as another service receives it: message, status and metadata, without its class."""
    return TerminalError(error.message, error.status_code, dict(error.metadata or {}))


def test_docstring_tree_matches_classes():
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"[ │]*[├└]─ (\w+)\s+(\d{3})?", line):
            drawn[found[1]] = found[2]
    classes = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert set(drawn) == set(classes) - {"PerdureError"}
    for name, status in drawn.items():
        kind = classes[name]
        if status is not None and issubclass(kind, PerdureTerminalError):
            assert kind.default_status == int(status), name


@pytest.mark.parametrize("kind", TERMINAL, ids=lambda kind: kind.__name__)
def test_export_and_document_terminal_errors(kind):
    assert kind.__name__ in errors.__all__
    assert kind.__doc__


def test_codes_are_unique():
    codes = [kind.code for kind in TERMINAL]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", SIMPLE, ids=lambda kind: kind.__name__)
def test_code_and_status_cross_services(kind):
    error = kind("what happened", metadata={"field": "seats"})
    there = arrived(error)
    assert there.message == "what happened"
    assert there.status_code == kind.default_status
    assert error_code(there) == kind.code
    assert (there.metadata or {})["field"] == "seats"


def test_do_not_change_given_metadata():
    facts = {"field": "seats"}
    InvalidInput("x", metadata=facts)
    assert facts == {"field": "seats"}


def test_convert_metadata_to_text():
    # The SDK accepts strings only; another value would break the attempt, or leave a run that never ends.
    assert Refused("x", metadata={"left": 0}).metadata == {"code": "refused", "left": "0"}


@pytest.mark.parametrize("status", [400, 418, 599, HTTPStatus.GONE])
def test_keep_given_status(status):
    assert PerdureTerminalError("x", status_code=status).status_code == status


ODD_STATUS: list[Any] = [0, 99, 200, 302, 600, 1000, -1, 10**30, True, "404", 404.0, (404,)]


@pytest.mark.parametrize("status", ODD_STATUS, ids=repr)
def test_replace_status_of_no_error(status):
    assert Refused("x", status).status_code == 409
    assert clean_terminal(TerminalError("x", status)).status_code == 500


class Unreadable:
    def __repr__(self) -> str:
        raise KeyboardInterrupt

    __str__ = __repr__


class UnreadableMapping(dict[Any, Any]):
    def items(self) -> Any:
        raise SystemExit


class UnreadableError(Exception):
    __repr__ = __str__ = Unreadable.__repr__


class Incomplete(TerminalError):
    """Lacks the attributes that the SDK reads, since it does not call the constructor."""

    def __init__(self) -> None: ...


class Fixed(TerminalError):
    @property
    def message(self) -> Any:  # type: ignore[override] # the case under test
        raise RuntimeError

    @message.setter
    def message(self, _: Any) -> None: ...


class FixedRetryable(RetryableError):
    @property
    def retry_after(self) -> Any:  # type: ignore[override] # the case under test
        raise RuntimeError

    @retry_after.setter
    def retry_after(self, _: Any) -> None: ...


ODD = {
    "none": None,
    "number": 5,
    "bytes": b"\xff",
    "surrogate": "caf\udce9",
    "control": "\x1b[2J\0\r\x9b",
    "long": "x" * 3_000_000,
    "unreadable": Unreadable(),
    "unreadable mapping": UnreadableMapping(a=1),
    "keys": {1: 2, None: "\ud800", Unreadable(): Unreadable(), "long" * 1000: "long" * 10_000},
    "many": {str(number): number for number in range(10_000)},
    "empty": "",
}
texts = st.text(st.characters(categories=None))


def assert_clean(error: TerminalError) -> None:
    """Assert that the engine accepts the error: encodable, bounded texts, and the status of an error."""
    assert type(error.message) is str
    assert len(error.message) <= 8_000
    assert 400 <= error.status_code <= 599
    metadata = error.metadata or {}
    assert len(metadata) <= 66
    for text in (error.message, *metadata, *metadata.values()):
        assert type(text) is str
        text.encode()
        assert len(text) <= 8_000
        assert not {category(each) for each in text.replace("\n", "").replace("\t", "")} & {"Cc", "Cs"}


@pytest.mark.parametrize("message", ODD)
@pytest.mark.parametrize("metadata", ODD)
def test_clean_any_message_and_metadata(message: str, metadata: str):
    text, facts = cast("Any", ODD[message]), cast("Any", ODD[metadata])
    raw = TerminalError(text, 409, facts)
    for error in (
        Refused(text, 410, "code", facts),
        clean_terminal(raw),
        StepFailed("step", TerminalError(text, 409, facts)),
        LoopFailed("loop", 1, TerminalError(text, 409, facts)),
        RetryExhausted(3, TerminalError(text, 409, facts)),
    ):
        assert_clean(error)
    assert error_code(TerminalError(text, 409, facts)) is None
    assert StepFailed("flight", TerminalError(text, 409, facts)).metadata["step"] == "flight"  # type: ignore[index] # set


@given(texts, st.dictionaries(texts, texts, max_size=3))
def test_cleaning_is_idempotent(message: str, metadata: dict[str, str]):
    error = Refused(message, metadata=metadata)
    again = clean_terminal(TerminalError(error.message, error.status_code, error.metadata))
    assert (again.message, again.metadata) == (error.message, error.metadata)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_readable_message_is_unchanged(message: str):
    assert Refused(message).message == message


@pytest.mark.parametrize("error", [Incomplete(), Fixed("x", 404), raised_from(Incomplete()), raised_from(Fixed("x"))])
def test_substitute_unreadable_terminal_error(error: Exception):
    reported = reportable(error)
    assert isinstance(reported, TerminalError)
    assert_clean(reported)


def test_correct_terminal_error_in_place():
    cause = TerminalError("caf\udce9", 404, {"file": "caf\udce9"})
    error = raised_from(cause)
    assert reportable(cast("Exception", error)) is error
    assert (cause.message, cause.status_code, cause.metadata) == ("caf\\udce9", 404, {"file": "caf\\udce9"})


@pytest.mark.parametrize(
    "error",
    [UnreadableError("x"), FixedRetryable("x"), SyntaxError("x", ("file", 1, "no column", "text"))],
    ids=["repr", "attribute", "traceback"],
)
def test_substitute_unreadable_error(error: Exception):
    reported = reportable(error)
    assert reported is not error
    assert not is_terminal(reported)
    assert repr(reported)
    assert traceback.format_exception(reported)


@pytest.mark.parametrize("error", [ValueError("x"), Refused("x"), RetryableError("x"), raised_from(TerminalError("x"))])
def test_report_readable_error_unchanged(error: Exception):
    assert reportable(error) is error


def test_refusal_carries_code_of_rule():
    error = Refused("no seats left", 410, "seats_sold_out", {"flight": "PD100"})
    assert (error.status_code, error_code(error)) == (410, "seats_sold_out")
    assert error.metadata == {"code": "seats_sold_out", "flight": "PD100"}
    assert error_code(Refused("no")) == "refused"
    assert Refused("no").status_code == 409


def test_error_without_metadata_has_no_code():
    assert error_code(TerminalError("x")) is None
    assert error_code(TerminalError("x", 400, {})) is None


def test_failed_step_keeps_code_of_cause():
    error = StepFailed("flight", Refused("no seats left", 410, "seats_sold_out"))
    assert error.message == "step 'flight' failed: no seats left"
    assert (error.status_code, error_code(error), error.step) == (410, "seats_sold_out", "flight")
    assert (error.metadata or {})["step"] == "flight"


def test_failed_step_without_code_has_default():
    error = StepFailed("flight", TerminalError("boom", 503))
    assert (error.status_code, error_code(error)) == (503, "step_failed")


@pytest.mark.parametrize(
    ("error", "terminal"),
    [
        (TerminalError("x"), True),
        (Cancelled("x"), True),
        (RunExhausted("x"), True),
        (ValueError("x"), False),
        (PerdureError("x"), False),
        (IngressError("x"), False),
        (raised_from(TerminalError("x")), True),
        (raised_from(raised_from(TerminalError("x"))), True),
        (raised_from(ValueError("x")), False),
    ],
    ids=repr,
)
def test_recognise_terminal_errors(error, terminal):
    assert is_terminal(error) is terminal


def test_error_in_except_block_is_not_terminal():
    # Without `from`, the SDK retries it.
    error = ValueError("y")
    error.__context__ = TerminalError("x")
    assert not is_terminal(error)


def test_visit_cyclic_cause_once():
    final, transient = TerminalError("x"), ValueError("y")
    final.__cause__ = final
    transient.__cause__ = wrapped = raised_from(transient)
    assert list(causes(transient)) == [transient, wrapped]
    assert is_terminal(final)
    assert not is_terminal(transient)


def test_ingress_error_names_its_source():
    error = IngressError("no", status_code=409, source="invocation", metadata={"code": "conflict"})
    assert str(error) == "no"
    assert (error.message, error.status_code, error.source, error.code) == ("no", 409, "invocation", "conflict")
    assert IngressError("no").code is None
    assert IngressError("no").metadata == {}
