"""Guardrails under the policies strict, warn and disabled."""

from __future__ import annotations

import pytest

from perdure import guardrail, set_policy
from perdure.errors import GuardrailViolation
from perdure.guardrails import GuardrailPolicy, get_policy, policy_from_environment


@pytest.fixture(autouse=True)
def _policy_of_the_environment():
    set_policy(None)
    yield
    set_policy(None)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, GuardrailPolicy.WARN),
        ({"CI": ""}, GuardrailPolicy.WARN),
        ({"CI": "true"}, GuardrailPolicy.STRICT),
        ({"CI": "false"}, GuardrailPolicy.STRICT),  # any value counts
        ({"GITHUB_ACTIONS": "1"}, GuardrailPolicy.STRICT),
        ({"PERDURE_POLICY": "disabled", "CI": "true"}, GuardrailPolicy.DISABLED),
        ({"PERDURE_POLICY": "strict"}, GuardrailPolicy.STRICT),
        ({"PERDURE_POLICY": "warn", "CI": "true"}, GuardrailPolicy.WARN),
        ({"PERDURE_POLICY": "", "CI": "true"}, GuardrailPolicy.STRICT),
    ],
)
def test_environment_sets_policy(environment, expected, capsys):
    assert policy_from_environment(environment) is expected
    assert capsys.readouterr().err == ""


def test_unknown_policy_means_warn(capsys):
    assert policy_from_environment({"PERDURE_POLICY": "lax", "CI": "true"}) is GuardrailPolicy.WARN
    assert capsys.readouterr().err == "Warning: Unknown PERDURE_POLICY=\"lax\", defaulting to 'warn'\n"


def test_read_environment_once_until_reset(monkeypatch):
    monkeypatch.setenv("PERDURE_POLICY", "disabled")
    assert get_policy() is GuardrailPolicy.DISABLED
    monkeypatch.setenv("PERDURE_POLICY", "strict")
    assert get_policy() is GuardrailPolicy.DISABLED
    set_policy(None)
    assert get_policy() is GuardrailPolicy.STRICT


@pytest.mark.parametrize("value", [GuardrailPolicy.STRICT, "strict"])
def test_set_policy_by_value_or_name(value, monkeypatch):
    monkeypatch.setenv("PERDURE_POLICY", "disabled")
    set_policy(value)
    assert get_policy() is GuardrailPolicy.STRICT


def test_reject_unknown_policy_name():
    set_policy("disabled")
    with pytest.raises(ValueError, match="lax"):
        set_policy("lax")
    assert get_policy() is GuardrailPolicy.DISABLED


def test_strict_raises_terminal_400():
    set_policy("strict")
    with pytest.raises(GuardrailViolation) as violation:
        guardrail("SideEffect", "a call outside a run", severity="error")
    error = violation.value
    assert error.message == "framework guardrail failed [SideEffect]: a call outside a run"
    assert error.status_code == 400
    assert error.metadata == {"code": "guardrail", "check": "SideEffect", "severity": "error"}


def test_strict_fails_for_info_severity():
    # Information is a violation, too.
    set_policy("strict")
    with pytest.raises(GuardrailViolation):
        guardrail("RedundantIdempotencyKey", "unnecessary", severity="info")


def test_warn_logs_once(caplog):
    set_policy("warn")
    guardrail("SideEffect", "a call outside a run")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    text = caplog.text
    for part in (
        "framework guardrail violation (permissive mode)",
        "SideEffect",
        "a call outside a run",
        "warning",
        "warn",
    ):
        assert part in text


def test_disabled_ignores_violations(caplog):
    set_policy("disabled")
    guardrail("SideEffect", "a call outside a run", severity="error")
    assert caplog.records == []


def test_override_replaces_policy(caplog):
    set_policy("strict")
    guardrail("SideEffect", "x", override=GuardrailPolicy.DISABLED)
    assert caplog.records == []
    guardrail("SideEffect", "x", override=GuardrailPolicy.WARN)
    assert len(caplog.records) == 1
    set_policy("disabled")
    with pytest.raises(GuardrailViolation):
        guardrail("SideEffect", "x", override=GuardrailPolicy.STRICT)
