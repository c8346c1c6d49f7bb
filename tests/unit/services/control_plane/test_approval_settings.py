"""What the environment says about approvals: how a trip is asked about, and whose word is taken."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from perdure.approvals.request import ApprovalRequest
from perdure.errors import ConfigurationError
from perdure.security import PrivateKey
from services.control_plane.approvals.settings import ApprovalsSettings
from services.control_plane.orchestrator.settings import OrchestratorSettings

HOUR = timedelta(hours=1)


def asked(settings: OrchestratorSettings) -> ApprovalRequest:
    timeout, options = settings.asking()
    return ApprovalRequest.model_validate(
        {**options, "approval_id": "T1", "title": "t", "timeout": timeout, "wait": "a", "awakeable": "wa"}
    )


def test_by_default_anyone_is_asked_reminded_and_asked_again_within_a_day() -> None:
    request = asked(OrchestratorSettings())
    assert (request.timeout, request.time_in_all, request.remind_every) == (16 * HOUR, 24 * HOUR, 4 * HOUR)
    assert [(stage.approvers, stage.quorum, stage.on_timeout) for stage in request.stages] == [
        ([], 1, "escalate"),
        ([], 1, "error"),
    ]


def test_the_whole_time_is_what_it_says_whatever_the_escalation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_ORCHESTRATOR_APPROVAL_TIMEOUT", "PT10S")
    assert asked(OrchestratorSettings()).time_in_all == timedelta(seconds=10)
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
    assert [stage.timeout.seconds for stage in asked(OrchestratorSettings()).stages] == [10]  # never


def test_links_have_a_key_and_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ApprovalsSettings().approvals().link_key is None
    key, old = PrivateKey.generate(), PrivateKey.generate()
    key.save(tmp_path / "links.pem")
    monkeypatch.setenv("PERDURE_APPROVALS_LINK_KEY_FILE", str(tmp_path / "links.pem"))
    monkeypatch.setenv("PERDURE_APPROVALS_OLD_LINK_KEYS", f" {old.public.id}, ")
    monkeypatch.setenv("PERDURE_CONSOLE_URL", "https://console.example.com")
    monkeypatch.setenv("PERDURE_APPROVALS_RETENTION", "P7D")
    config = ApprovalsSettings().approvals()
    assert config.link_keys == (key.public, old.public)
    assert (config.console_url, config.retention) == ("https://console.example.com", timedelta(days=7))
    monkeypatch.setenv("PERDURE_APPROVALS_OLD_LINK_KEYS", "nonsense")
    with pytest.raises(ConfigurationError):
        ApprovalsSettings().approvals()
    monkeypatch.setenv("PERDURE_APPROVALS_RETENTION", "PT0S")
    with pytest.raises(ValidationError, match="retention"):
        ApprovalsSettings()
