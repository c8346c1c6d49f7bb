from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from perdure.approvals.messages import ApprovalRequest, DecisionRequest
from perdure.serdes import invalid_input, serde_for


def request(**changes: Any) -> ApprovalRequest:
    fields = {"approval_id": "T1", "title": "Trip", "timeout": timedelta(hours=1), "awakeable": "sign_1", **changes}
    return ApprovalRequest(**fields)


def refused_field(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        request(**changes)
    return (invalid_input(caught.value).metadata or {})["field"]


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
        ("veto", True),
    ],
)
def test_bad_request_names_the_field(field: str, value: Any):
    assert refused_field(**{field: value}).split(".")[0] == field


def test_a_bad_approver_is_named_by_position():
    assert refused_field(approvers=["ada", ""]) == "approvers.1"


def test_quorum_must_be_reachable_without_the_requester():
    assert refused_field(approvers=["ada", "bob"], quorum=3) == "quorum"
    assert refused_field(approvers=["ada", "bob"], requester="BOB", quorum=2) == "quorum"
    assert refused_field(approvers=["bob"], requester="bob") == "quorum"
    assert request(approvers=["ada", "bob"], requester="bob", quorum=1).quorum == 1
    assert request(approvers=[], quorum=3).quorum == 3


def test_who_is_named_twice_counts_once():
    assert request(approvers=["Ada", "bob", "ADA "]).approvers == ["ada", "bob"]
    assert refused_field(approvers=["ada", "ADA"], quorum=2) == "quorum"


def test_a_request_survives_its_journey():
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
    ]:
        with pytest.raises(ValidationError):
            serde.deserialize(body)
