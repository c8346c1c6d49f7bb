"""Rights of principals, revocation of delegations and links."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.approvals.audit_log import verify_audit_log
from perdure.approvals.eligibility import MAX_REVOCATIONS, link_error
from perdure.approvals.messages import Delegation
from perdure.approvals.policy import (
    Change,
    decide,
    delegate,
    open_approval,
    revoke_delegation,
    revoke_links,
)
from perdure.approvals.principals import check_not_future
from perdure.approvals.request import ApprovalRequest, Stage
from perdure.approvals.schema import Approval, Principal
from perdure.errors import InvalidInput, error_code
from perdure.security import Role
from tests.unit.approvals.test_policy import NOON as START
from tests.unit.approvals.test_policy import vote

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

times = st.integers(0, 20).map(lambda minutes: START + timedelta(minutes=minutes))
statements = st.builds(
    Principal,
    roles=st.lists(st.sampled_from(Role), max_size=2, unique=True).map(lambda roles: tuple(sorted(roles))),
    active=st.booleans(),
    revoked_before=st.none() | times,
    as_of=times,
)


def rights(**changes: Any) -> Principal:
    return Principal(roles=(Role.APPROVER,), as_of=START).model_copy(update=changes)


def why(principal: Principal, issued_at: datetime | None = START, role: Role | None = Role.APPROVER) -> str | None:
    found = principal.refusal("ada", role=role, issued_at=issued_at, grant="this link")
    return None if found is None else str((found.metadata or {})["why"])


def test_unstated_principal_keeps_rights_until_revoked():
    assert why(Principal()) is None
    assert why(Principal().revoked(START)) == "revoked"
    assert why(Principal().revoked(START), START + timedelta(microseconds=1)) is None


@pytest.mark.parametrize(
    ("principal", "expected"),
    [
        (rights(), None),
        (rights(active=False), "disabled"),
        (rights(roles=(Role.VIEWER,)), "role"),
        (rights(roles=()), "role"),
        (rights(revoked_before=START), "revoked"),
        (rights(revoked_before=START - timedelta(microseconds=1)), None),
    ],
)
def test_refusal_by_current_rights(principal: Principal, expected: str | None):
    assert why(principal) == expected


def test_role_is_checked_only_if_required():
    assert why(rights(roles=(Role.OPERATOR,)), role=None) is None
    assert why(rights(active=False), role=None) == "disabled"
    assert why(rights(revoked_before=START), issued_at=None) is None


@given(st.lists(statements, max_size=4, unique_by=lambda stated: stated.as_of))
def test_statements_commute(stated: list[Principal]):
    """Statements arrive at least once in any order: the latest one and every revocation count."""
    ends = set()
    for order in permutations(stated):
        known = Principal()
        for each in (*order, *order):
            known = known.updated(each)
        ends.add(known.model_dump_json())
    assert len(ends) == 1


@given(st.lists(statements | times, min_size=1, max_size=8), times)
def test_revocation_is_permanent(events: list[Principal | datetime], issued_at: datetime):
    known, was_revoked = Principal(), False
    for event in events:
        known = known.updated(event) if isinstance(event, Principal) else known.revoked(event)
        revoked = event.revoked_before if isinstance(event, Principal) else event
        was_revoked = was_revoked or (revoked is not None and issued_at <= revoked)
        assert (why(known.model_copy(update={"active": True}), issued_at, role=None) == "revoked") == was_revoked


def test_reject_statement_from_the_future():
    check_not_future(START, as_of=START + timedelta(minutes=5), revoked_before=None)
    with pytest.raises(InvalidInput, match="is in the future") as caught:
        check_not_future(START, as_of=START + timedelta(minutes=6))
    assert caught.value.metadata is not None
    assert caught.value.metadata["field"] == "as_of"


def opened(**changes: Any) -> Approval:
    fields = {"approval_id": "T1", "title": "t", "requester": "req", "approvers": ["ada", "bob"], "quorum": 2}
    fields |= {"timeout": HOUR, "wait": "w1", "awakeable": "a1"}
    return open_approval(Approval(approval_id="T1"), ApprovalRequest(**{**fields, **changes}), START).approval


def delegation(until: datetime, *, at: datetime = START, **changes: Any) -> Delegation:
    return Delegation.model_validate({"actor": "ada", "to": "cy", "until": until, "at": at, **changes})


def refusal(change: Change) -> tuple[int, str | None]:
    assert change.error is not None
    return change.error.status_code, error_code(change.error)


def test_delegation_ends_with_the_approval():
    approval = opened(timeout=2 * HOUR, escalation=[Stage(approvers=["boss"], timeout=HOUR)])
    change = delegate(approval, delegation(START + DAY))
    (kept,) = change.approval.delegations
    assert kept.until == START + 3 * HOUR
    assert change.entries[0].details["until"] == (START + DAY).isoformat(), "as it was signed"
    again = delegate(change.approval, delegation(START + DAY))
    assert (again.error, again.entries) == (None, ())


def test_delegation_duration_is_bounded():
    approval = opened(timeout=90 * DAY)
    assert delegate(approval, delegation(START + 30 * DAY)).error is None
    change = delegate(approval, delegation(START + 30 * DAY + timedelta(seconds=1)))
    assert refusal(change) == (400, "invalid_input")
    assert change.error is not None
    assert change.error.metadata is not None
    assert change.error.metadata["field"] == "until"
    assert refusal(delegate(approval, delegation(START + 2 * DAY), max_duration=DAY)) == (400, "invalid_input")


def test_revoked_delegation_stays_revoked():
    approval = delegate(opened(), delegation(START + HOUR)).approval
    assert approval.pending_approvers() == {"ada", "bob", "cy"}
    change = revoke_delegation(approval, "ada", "ada is disabled", START + timedelta(minutes=1))
    (entry,) = change.entries
    assert (entry.action, entry.result, entry.reason) == ("revoke_delegation", "revoked", "ada is disabled")
    revoked = change.approval
    assert revoked.pending_approvers() == {"ada", "bob"}
    assert refusal(vote(revoked, "cy", minutes=2)) == (403, "delegation_revoked")
    assert revoke_delegation(revoked, "ada", "again", START).entries == ()
    assert vote(revoked, "ada", minutes=2).error is None
    anew = delegate(revoked, delegation(START + HOUR, at=START + timedelta(minutes=3))).approval
    assert vote(anew, "cy", minutes=4).error is None


def test_used_delegation_is_not_revoked():
    approval = vote(delegate(opened(), delegation(START + HOUR)).approval, "cy").approval
    assert revoke_delegation(approval, "ada", "too late", START).entries == ()


def test_revoke_links():
    approval, at = opened(), START + timedelta(minutes=1)

    def end(actor: str, person: str | None, *, may_revoke: bool = False) -> Change:
        return revoke_links(approval, actor, person, at, may_revoke=may_revoke)

    for change in (end("ada", "bob"), end("ada", None), end("eve", "ada")):
        assert refusal(change) == (403, "not_allowed_to_revoke")
    for change, ended in (
        (end("ada", "ada"), {"ada"}),
        (end("req", "bob"), {"bob"}),
        (end("req", None), {"ada", "bob"}),
        (end("olga", None, may_revoke=True), {"ada", "bob"}),
    ):
        assert change.error is None
        assert verify_audit_log("T1", change.entries, head=change.approval.head).broken_at in (None, 1)
        for person in ("ada", "bob"):
            assert (link_error(change.approval, person, at) is not None) == (person in ended)
            assert link_error(change.approval, person, at + timedelta(microseconds=1)) is None


def test_link_of_earlier_approval_is_refused():
    found = link_error(opened(), "ada", START - timedelta(microseconds=1))
    assert found is not None
    assert (found.status_code, error_code(found)) == (403, "link_revoked")
    assert link_error(opened(), "ada", START) is None


def test_revocations_are_bounded():
    approval = opened()
    for number in range(MAX_REVOCATIONS):
        approval = revoke_links(approval, "olga", f"p{number}", START, may_revoke=True).approval
    assert refusal(revoke_links(approval, "olga", "one more", START, may_revoke=True)) == (429, "too_many_revocations")
    assert revoke_links(approval, "olga", "p1", START, may_revoke=True).error is None
    assert revoke_links(approval, "olga", None, START, may_revoke=True).approval.links_revoked == {"anyone": START}


def test_closed_approval_needs_no_revocation():
    closed = vote(opened(quorum=1), "ada").approval
    assert refusal(revoke_links(closed, "req", None, START + HOUR / 2, may_revoke=False)) == (409, "too_late")
    late = revoke_links(opened(), "req", None, START + 2 * HOUR, may_revoke=False)
    assert refusal(late) == (409, "too_late")
    assert late.approval.outcome is not None
    assert refusal(revoke_links(Approval(approval_id="T2"), "req", None, START, may_revoke=False))[0] == 404


def test_vote_after_revocation_of_delegator():
    """The revocation is recorded and the vote is refused."""
    approval = delegate(opened(), delegation(START + HOUR)).approval
    at = START + timedelta(minutes=5)
    decision = vote(approval, "cy", minutes=5).approval.vote_by("cy")
    assert decision is not None
    change = revoke_delegation(approval, "ada", "why", at).then(
        lambda there: decide(there, decision.model_copy(update={"on_behalf_of": None}))
    )
    assert refusal(change) == (403, "delegation_revoked")
    assert [entry.result for entry in change.entries] == ["revoked", "refused:delegation_revoked"]
