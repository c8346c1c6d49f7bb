"""Requester, owner of its API key and subject may not vote, under any alias or right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from perdure.approvals.messages import Delegation, Vote
from perdure.approvals.policy import Change, decide, delegate, open_approval, withdraw
from perdure.approvals.request import ApprovalRequest, requester_text
from perdure.approvals.schema import Approval
from perdure.errors import error_code
from perdure.security.user_names import canonical_user, mailbox_of, shares_mailbox

START = datetime(2030, 1, 1, tzinfo=UTC)
LATER = START + timedelta(minutes=1)
HOUR = timedelta(hours=1)
ADA, BOB, CY, SHOP = "ada@example.com", "bob@example.com", "cy@example.com", "key:shop"


def request(**changes: object) -> ApprovalRequest:
    names = {"approval_id": "T1", "wait": "w1", "awakeable": "a1"}
    fields = {**names, "title": "t", "timeout": HOUR, "requester_verified": True}
    return ApprovalRequest.model_validate({**fields, **changes})


def opened(**changes: object) -> Approval:
    return open_approval(Approval(approval_id="T1"), request(**changes), START).approval


def code(change: Change) -> str | None:
    return None if change.error is None else error_code(change.error)


def approve(approval: Approval, person: str, **more: object) -> Change:
    return decide(
        approval, Vote.model_validate({"actor": canonical_user(person), "approve": True, "at": LATER, **more})
    )


def delegate_to(approval: Approval, actor: str, to: str) -> Change:
    return delegate(approval, Delegation(actor=actor, to=to, until=START + HOUR, at=LATER))


roles = st.sampled_from(["requester", "requester_owner", "subject"])
tags = st.text("abcxyz0189.-_", max_size=8)


@st.composite
def aliases(draw: st.DrawFn) -> str:
    """Return an alias of ada's address."""
    name = f"ada+{draw(tags)}@example.com" if draw(st.booleans()) else ADA
    upper = draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    return "".join(c.upper() if up else c for c, up in zip(name, upper, strict=True))


@given(roles, aliases(), aliases(), st.booleans())
def test_no_alias_of_an_excluded_person_decides(role: str, named: str, acting: str, verified: bool):
    people = [ADA, BOB, CY, canonical_user(acting)]
    approval = opened(
        **{role: named},
        requester_verified=verified,
        groups={"finance": [BOB, canonical_user(acting)]},
        approvers=[*people, "group:finance", "group:legal"],
        veto=[canonical_user(acting)],
    )
    me = canonical_user(acting)
    assert code(approve(approval, acting)) == "own_request"
    assert code(approve(approval, acting, groups=["legal"])) == "own_request"
    assert code(decide(approval, Vote(actor=me, approve=False, at=LATER))) == "own_request"
    assert code(delegate_to(approval, me, "dee@example.com")) == "own_request"
    assert code(delegate_to(approval, BOB, me)) == "delegation_to_requester"
    assert not any(shares_mailbox(person, [me]) for person in approval.pending_approvers())
    # Early votes are checked at the opening.
    early = approve(Approval(approval_id="T1"), acting).approval
    assert open_approval(early, request(**{role: named}), LATER).approval.votes == ()


@given(roles, aliases())
def test_aliases_do_not_fill_a_quorum(role: str, named: str):
    people = [ADA, canonical_user(named), BOB]
    with pytest.raises(ValidationError, match="2 approvals are needed, but only 1 approvers may vote"):
        request(**{role: named}, approvers=people, quorum=2)
    assert code(approve(opened(**{role: named}, approvers=people), BOB)) is None


def test_requester_and_subject_are_both_excluded():
    approval = opened(requester=CY, subject=ADA)
    assert code(approve(approval, CY)) == code(approve(approval, ADA)) == "own_request"
    assert approve(approval, BOB).approval.state == "approved"


def test_key_owner_is_excluded_and_may_withdraw():
    approval = opened(requester=SHOP, requester_owner=CY, subject=ADA)
    refused = approve(approval, CY).error
    assert refused is not None
    assert refused.message == f"{CY} owns the API key of {SHOP}, which requested this approval, and may not vote"
    assert code(withdraw(approval, ADA, "", LATER)) == "not_the_requester"
    assert withdraw(approval, CY, "", LATER).approval.state == "withdrawn"


def test_unverified_requester_may_withdraw():
    approval = opened(requester=ADA, subject=ADA, requester_verified=False)
    assert withdraw(approval, ADA, "", LATER).approval.state == "withdrawn"


def test_another_caller_does_not_join():
    approval = opened(requester=CY, subject=ADA)
    for other in ({"requester": BOB}, {"requester_verified": False}, {"requester_owner": BOB}, {"subject": BOB}):
        asked = request(**{"requester": CY, "subject": ADA, "wait": "w2", "awakeable": "a2", **other})
        assert code(open_approval(approval, asked, LATER)) == "another_question"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"requester": SHOP, "requester_owner": CY, "subject": ADA},
            {"requester": "verified", "owner": CY, "subject": ADA},
        ),
        (
            {"requester": ADA, "subject": ADA, "requester_verified": False},
            {"requester": "unverified", "subject": ADA},
        ),
        ({"requester_verified": False}, {}),
    ],
)
def test_audit_log_records_requester(fields: dict[str, object], expected: dict[str, str]):
    (entry,) = open_approval(Approval(approval_id="T1"), request(**fields), START).entries
    assert {name: value for name, value in entry.details.items() if name != "payload_digest"} == expected


@pytest.mark.parametrize(
    ("requester", "verified", "subject", "text"),
    [
        (SHOP, True, ADA, "key:shop, for ada@example.com"),
        (ADA, True, ADA, "ada@example.com"),
        (ADA, False, ADA, "ada@example.com (unverified)"),
        ("", False, "", ""),
        ("", False, ADA, "for ada@example.com"),
    ],
)
def test_requester_text(requester: str, verified: bool, subject: str, text: str):
    assert requester_text(requester, verified=verified, subject=subject) == text


@pytest.mark.parametrize(
    ("name", "mailbox"),
    [
        ("ada+trips@example.com", "ada@example.com"),
        ("ada+a+b@example.com", "ada@example.com"),
        ("ada+@example.com", "ada@example.com"),
        ("+ada@example.com", "+ada@example.com"),
        ("a.da@example.com", "a.da@example.com"),
        ("ada", "ada"),
        ("ada+x", "ada+x"),
        ("a@b+c@example.com", "a@b@example.com"),
    ],
)
def test_mailbox_behind_an_address(name: str, mailbox: str):
    assert mailbox_of(name) == mailbox


def test_empty_requester_excludes_no_person():
    assert not shares_mailbox("", [""])
    assert code(approve(opened(), ADA)) is None
