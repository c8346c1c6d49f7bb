"""The exception tree: status, code and metadata of each error."""

from __future__ import annotations

import inspect
import re

import pytest

from perdure import errors
from perdure.errors import (
    Cancelled,
    IngressError,
    InvalidInput,
    PerdureError,
    PerdureTerminalError,
    Refused,
    RunExhausted,
    StepFailed,
    TerminalError,
    causes,
    error_code,
    is_terminal,
)

TERMINAL = [
    value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, PerdureTerminalError) and value is not PerdureTerminalError
]
# The others are constructed from their cause.
SIMPLE = [kind for kind in TERMINAL if "metadata" in inspect.signature(kind).parameters]


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


@pytest.mark.parametrize("status", [0, 418])
def test_keep_given_status(status):
    assert PerdureTerminalError("x", status_code=status).status_code == status


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


def raised_from(cause: BaseException) -> BaseException:
    error = ValueError("wrapped")
    error.__cause__ = cause
    return error


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
