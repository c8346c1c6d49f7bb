from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from perdure._runtime.serdes import invalid_input, serde_for
from perdure.approvals.messages import DecisionRequest, DelegationRequest
from perdure.approvals.request import ApprovalRequest


def request(**changes: Any) -> ApprovalRequest:
    fields = {
        "approval_id": "T1",
        "title": "Trip",
        "timeout": timedelta(hours=1),
        "wait": "sign_1",
        "awakeable": "wsign_1",
        **changes,
    }
    return ApprovalRequest(**fields)


def refused_field(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        request(**changes)
    return (invalid_input(caught.value).metadata or {})["field"]


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("approval_id", ""),
        ("approval_id", "x" * 257),
        ("title", ""),
        ("title", "x" * 501),
        ("requester", "x" * 1001),
        ("quorum", 0),
        ("quorum", 101),
        ("timeout", timedelta(0)),
        ("timeout", timedelta(seconds=-1)),
        ("timeout", timedelta(days=4000)),
        ("awakeable", ""),
        ("approvers", [f"p{n}" for n in range(101)]),
        ("payload", object()),
        ("payload", {"scan": "ä" * (128 * 1024)}),
        ("payload", nested(195)),
        ("payload", "half a surrogate: \ud800"),
        ("veto", True),
        ("veto", ["group:"]),
        ("groups", {"finance": []}),
        ("groups", {"group:finance": ["ada"]}),
        ("approvers", ["group:anyone"]),
        ("remind_every", timedelta(0)),
        ("remind_every", timedelta(seconds=1)),  # more than 100 reminders in an hour
        ("escalation", [{"timeout": "PT1H", "approvers": ["ada"], "quorum": 2}]),
        ("escalation", [{"timeout": "PT1H"}] * 10),
    ],
)
def test_bad_request_names_the_field(field: str, value: Any):
    assert refused_field(**{field: value}).split(".")[0] == field


def test_error_names_position_of_invalid_approver():
    assert refused_field(approvers=["ada", ""]) == "approvers.1"


def test_quorum_must_be_reachable_without_the_requester():
    assert refused_field(approvers=["ada", "bob"], quorum=3) == "quorum"
    assert refused_field(approvers=["ada", "bob"], requester="BOB", quorum=2) == "quorum"
    assert refused_field(approvers=["bob"], requester="bob") == "quorum"
    assert request(approvers=["ada", "bob"], requester="bob", quorum=1).quorum == 1
    assert request(approvers=[], quorum=3).quorum == 3


def test_quorum_must_be_reachable_by_members_of_groups():
    groups = {"finance": ["ada", "bob"]}
    assert refused_field(groups=groups, approvers=["group:finance", "ada"], quorum=3) == "quorum"
    assert request(groups=groups, approvers=["group:finance", "cy"], quorum=3).quorum == 3
    assert request(groups=groups, approvers=["group:finance", "group:legal"], quorum=9).quorum == 9
    assert refused_field(groups=groups, requester="ada", approvers=["group:finance"], quorum=2) == "quorum"


def test_only_last_stage_has_final_timeout_effect():
    more: list[dict[str, Any]] = [{"timeout": "PT1H"}]
    assert [stage.on_timeout for stage in request(escalation=more).stages] == ["escalate", "error"]
    assert [stage.on_timeout for stage in request(on_timeout="reject").stages] == ["reject"]
    assert request(escalation=more).total_timeout == timedelta(hours=2)
    for wrong in (
        {"on_timeout": "escalate"},
        {"on_timeout": "reject", "escalation": more},
        {"escalation": [{"timeout": "PT1H", "on_timeout": "escalate"}]},
    ):
        with pytest.raises(ValidationError, match="on_timeout"):
            request(**wrong)


def test_group_names_are_canonical():
    found = request(groups={" Finance": ["Ada", "ADA"]}, approvers=["Group: FINANCE", "group:finance"], veto=["ANYONE"])
    assert (found.groups, found.approvers, found.veto) == ({"finance": ["ada"]}, ["group:finance"], ["anyone"])


def test_duplicate_approvers_count_once():
    assert request(approvers=["Ada", "bob", "ADA "]).approvers == ["ada", "bob"]
    assert refused_field(approvers=["ada", "ADA"], quorum=2) == "quorum"


def test_request_survives_serialization():
    sent = request(approvers=["ada"], requester="Bob", payload={"b": [1, 2.5, None], "a": "\u00e9"})
    serde = serde_for(ApprovalRequest)
    assert serde.deserialize(serde.serialize(sent)) == sent


def test_decision_request_bounds():
    serde = serde_for(DecisionRequest)
    assert serde.deserialize(b'{"actor":"Ada","reason":""}') == DecisionRequest(actor="ada")
    assert serde.deserialize(b'{"actor":"ada","reason":"%s"}' % (b"r" * 2000)) is not None
    for body in [
        b'{"reason":"x"}',
        b'{"actor":""}',
        b'{"actor":1}',
        b'{"actor":"%s"}' % (b"a" * 201),
        b'{"actor":"ada","reason":"%s"}' % (b"r" * 2001),
        b'{"actor":"ada","approve":true}',
        b'{"actor":"group:finance"}',
    ]:
        with pytest.raises(ValidationError):
            serde.deserialize(body)


def test_reject_delegation_to_self_or_group():
    for to in ("ADA", "group:finance", ""):
        with pytest.raises(ValidationError, match="to"):
            DelegationRequest(actor="ada", to=to, until=datetime(2030, 1, 1, tzinfo=UTC))
