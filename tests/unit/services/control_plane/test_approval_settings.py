"""Approval settings from the environment."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from perdure.approvals.request import ApprovalRequest
from perdure.errors import ConfigurationError
from perdure.security import PrivateKey
from services.control_plane.approvals.settings import ApprovalsSettings
from services.control_plane.orchestrator.settings import OrchestratorSettings

HOUR = timedelta(hours=1)


def asked(settings: OrchestratorSettings) -> ApprovalRequest:
    timeout, options = settings.approval()
    return ApprovalRequest.model_validate(
        {**options, "approval_id": "T1", "title": "t", "timeout": timeout, "wait": "a", "awakeable": "wa"}
    )


def test_default_approval_reminds_and_escalates_within_a_day() -> None:
    request = asked(OrchestratorSettings())
    assert (request.timeout, request.total_timeout, request.remind_every) == (16 * HOUR, 24 * HOUR, 4 * HOUR)
    assert [(stage.approvers, stage.quorum, stage.on_timeout) for stage in request.stages] == [
        ([], 1, "escalate"),
        ([], 1, "error"),
    ]


def test_escalation_does_not_extend_total_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_ORCHESTRATOR_APPROVAL_TIMEOUT", "PT10S")
    assert asked(OrchestratorSettings()).total_timeout == timedelta(seconds=10)
    monkeypatch.setenv("PERDURE_ORCHESTRATOR_APPROVAL_ESCALATE_AFTER", "PT3S")
    monkeypatch.setenv("PERDURE_ORCHESTRATOR_APPROVERS", '["group:finance","Ada"]')
    monkeypatch.setenv("PERDURE_ORCHESTRATOR_APPROVAL_QUORUM", "2")
    monkeypatch.setenv("PERDURE_ORCHESTRATOR_APPROVAL_ESCALATE_TO", '["boss"]')
    request = asked(OrchestratorSettings())
    assert [(stage.approvers, stage.quorum, stage.timeout.seconds) for stage in request.stages] == [
        (["group:finance", "ada"], 2, 3),
        (["boss"], 1, 7),
    ]
    monkeypatch.setenv("PERDURE_ORCHESTRATOR_APPROVAL_ESCALATE_AFTER", "PT1M")
    assert [stage.timeout.seconds for stage in asked(OrchestratorSettings()).stages] == [10]  # no escalation


def test_read_link_keys_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ApprovalsSettings().approvals().link_keys == ()
    key, old = PrivateKey.generate().public, PrivateKey.generate().public
    monkeypatch.setenv("PERDURE_LINK_KEYS", f"{key.id}, {old.id}, ")
    monkeypatch.setenv("PERDURE_APPROVALS_RETENTION", "P7D")
    monkeypatch.setenv("PERDURE_APPROVALS_MAX_DELEGATION", "P2D")
    config = ApprovalsSettings().approvals()
    assert config.link_keys == (key, old)
    assert (config.retention, config.max_delegation) == (timedelta(days=7), timedelta(days=2))
    monkeypatch.setenv("PERDURE_LINK_KEYS", "nonsense")
    with pytest.raises(ConfigurationError):
        ApprovalsSettings().approvals()
    monkeypatch.setenv("PERDURE_APPROVALS_RETENTION", "PT0S")
    with pytest.raises(ValidationError, match="retention"):
        ApprovalsSettings()
