"""Causes from codes and texts. ``tests/integration/test_causes.py`` produces each of them on a real engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.alerts.causes import Cause, action_for, cause_of
from perdure.alerts.conditions import Alert, Condition

CODES = st.sampled_from(["", "RT0001", "RT0007", "RT0010", "RT0011", "RT0016"])


def alert(condition: Condition, error_code: str, reason: str = "") -> Alert:
    return Alert(id="a", condition=condition, invocation="inv_1", service="Trips", error_code=error_code, reason=reason)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("OSError(28, 'No space left on device')", Cause.DISK),
        ("(sqlite3.OperationalError) database or disk is full", Cause.DISK),
        ("OSError(30, 'Read-only file system')", Cause.DISK),
        ("(sqlite3.OperationalError) attempt to write a readonly database", Cause.DISK),
        ("DiskFullError: could not extend file", Cause.DISK),
        ("(sqlite3.OperationalError) database is locked", Cause.DATABASE),
        ("the database at db:5432 refuses connections", Cause.DATABASE),
        ("asyncpg.exceptions.CannotConnectNowError: the database system is starting up", Cause.DATABASE),
        ("ConnectionRefusedError(111, \"Connect call failed ('127.0.0.1', 5432)\")", Cause.DATABASE),
        ("TooManyConnectionsError('sorry, too many clients already')", Cause.DATABASE),
        ("ValueError('a defect')", Cause.OTHER),
        ("", Cause.OTHER),
    ],
)
def test_cause_from_text(reason: str, cause: Cause):
    assert cause_of(is_hanging=False, error_code="RT0007", reason=reason) is cause


@given(st.text())
def test_code_has_precedence_over_text(reason: str):
    text = f"No space left on device {reason}"
    assert cause_of(is_hanging=False, error_code="RT0016", reason=text) is Cause.JOURNAL_MISMATCH
    assert cause_of(is_hanging=True, error_code="RT0016", reason=text) is Cause.HANG


@given(st.sampled_from(Condition), CODES, st.text())
def test_no_advice_gives_up_work(condition: Condition, error_code: str, reason: str):
    """A deployment with open invocations must stay, and no cause requires a kill."""
    text = alert(condition, error_code, reason).action.lower()
    assert text
    assert "kill" not in text
    assert "remove" not in text.replace("do not remove", "").replace("was removed", "")


@given(st.sampled_from(Condition), CODES, st.text())
def test_stored_alert_is_read_back(condition: Condition, error_code: str, reason: str):
    before = alert(condition, error_code, reason)
    assert Alert.model_validate_json(before.model_dump_json()) == before


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_an_action(cause: Cause):
    assert action_for(cause)[-1] not in ".,"
