from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from perdure.approvals import policy
from perdure.approvals.approval import Approval, Change
from perdure.approvals.audit_log import chained
from perdure.approvals.messages import ApprovalStatus, AuditEntry, Decision, Delegation
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.rules import payload_digest
from perdure.approvals.signatures import action_target, delegation_details
from perdure.approvals.verification import ActionCheck, VerificationSummary, check_approval
from perdure.security import ActorKey, PrivateKey, PublicKey, Role, SignedAction, SigningMode, SigningRules, TrustedKeys

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ISSUER = PrivateKey.generate()
PAYLOAD = {"amount": 5}
SHOWN = payload_digest(PAYLOAD)


def trusting(*issuers: PublicKey, mode: SigningMode = SigningMode.UNSIGNED) -> SigningRules:
    return SigningRules(mode=mode, trusted_keys=TrustedKeys(issuers=issuers))


RULES = trusting(ISSUER.public)


def key_of(actor: str, role: Role = Role.APPROVER, issuer: PrivateKey = ISSUER) -> ActorKey:
    return ActorKey.issue(issuer, actor=actor, roles=[role], lifetime=HOUR, now=NOON)


ADA = key_of("ada")


class Story:
    """An approval, and its audit log so far."""

    def __init__(self) -> None:
        self.approval = Approval(approval_id="T1")
        self.audit_log: list[AuditEntry] = []

    def then(self, change: Change) -> None:
        self.approval = change.approval
        self.audit_log.extend(change.entries)

    def opened(self) -> Story:
        request = ApprovalRequest(
            approval_id="T1", title="?", requester="req", approvers=["ada", "bob"], quorum=2, timeout=HOUR,
            payload=PAYLOAD, wait="a1", awakeable="wa1", opener="inv_1",
        )  # fmt: skip
        self.then(policy.open_approval(self.approval, request, NOON))
        return self

    def decided(self, actor: str, proof: SignedAction | None, *, reason: str = "", by: str = "") -> Story:
        digest = proof.payload_digest if proof is not None and self.approval.rules is None else None
        decision = Decision(
            actor=actor, approve=True, reason=reason, at=NOON, signed=bool(proof or by), payload_digest=digest
        )
        self.then(policy.decide(self.approval, decision, proof, by=by))
        return self

    @property
    def status(self) -> ApprovalStatus:
        return ApprovalStatus(
            approval_id="T1", status=self.approval.state, title="?", requester="req", approvers=["ada", "bob"],
            quorum=2, payload=PAYLOAD, payload_digest=SHOWN, opened_at=NOON, deadline=NOON + HOUR, decided_at=None,
            decided_by=[], reason="", decisions=[], refusals=0, audit_log=self.audit_log, head=self.audit_log[-1].hash,
        )  # fmt: skip

    def rewritten(self, seq: int, **fields: object) -> Story:
        """As whoever can write into the engine's storage would: an entry is another one, and the chain fits."""
        self.audit_log[seq - 1] = self.audit_log[seq - 1].model_copy(update=fields)
        for index, entry in enumerate(self.audit_log):
            self.audit_log[index] = chained(entry, self.audit_log[index - 1].hash if index else "T1")
        return self


def signed(key: ActorKey = ADA, act: str = "approve", shown: str = SHOWN, reason: str = "") -> SignedAction:
    return key.sign(act, action_target("T1"), shown, reason=reason, at=NOON)


def acts(story: Story, rules: SigningRules = RULES) -> list[tuple[int, VerificationSummary]]:
    check = check_approval(story.status, rules)
    assert check.audit_log.intact
    return [(act.entry, act.standing) for act in check.acts]


def test_each_act_of_a_person_stands_as_it_was_proved():
    story = Story().opened().decided("ada", signed(reason="fine"), reason="fine").decided("bob", None)
    check = check_approval(story.status, RULES)
    assert check.good
    assert str(check).splitlines() == [
        "3 entries, chain intact",
        "entry 2: approve by ada: signed",
        "entry 3: approve by bob: unsigned",
        "acts of people: 1 signed, 1 unsigned",
    ]


def test_a_link_is_no_signature_and_is_taken_for_what_it_is():
    story = Story().opened().decided("ada", None, by="link")
    assert acts(story, trusting(ISSUER.public, mode=SigningMode.SIGNED)) == [(2, VerificationSummary.BY_LINK)]


def test_an_unsigned_act_is_bad_where_acts_are_signed():
    story = Story().opened().decided("ada", None)
    check = check_approval(story.status, trusting(ISSUER.public, mode=SigningMode.SIGNED))
    assert not check.good
    assert check.acts == [
        ActionCheck(
            entry=2,
            actor="ada",
            act="approve",
            standing=VerificationSummary.BAD,
            why="it has no signature, though it needs one",
        )
    ]


def test_without_issuers_it_says_that_it_checked_no_signature():
    check = check_approval(Story().opened().decided("ada", signed()).status, SigningRules())
    assert check.good
    assert "entry 2: approve by ada: signed, not checked" in str(check)
    assert "--issuer-keys" in str(check)


def test_a_decision_that_came_early_is_signed_once_and_counts_later():
    story = Story().decided("ada", signed()).decided("bob", None).opened()
    assert [(entry.act, entry.result) for entry in story.audit_log] == [
        ("approve", "kept"),
        ("approve", "kept"),
        ("open", "opened"),
        ("approve", "counted"),
        ("approve", "approved"),
    ]
    assert acts(story) == [
        (1, VerificationSummary.SIGNED),
        (2, VerificationSummary.UNSIGNED),
        (4, VerificationSummary.SIGNED),
        (5, VerificationSummary.UNSIGNED),
    ]


def test_an_early_decision_about_something_else_is_signed_and_does_not_count():
    story = Story().decided("ada", signed(shown="0" * 64)).opened()
    assert acts(story) == [(1, VerificationSummary.SIGNED)]
    story.rewritten(3, result="counted")
    assert acts(story) == [(1, VerificationSummary.SIGNED), (3, VerificationSummary.BAD)]


@pytest.mark.parametrize("until", [NOON + HOUR, NOON + timedelta(minutes=7, microseconds=123_456)])
def test_whom_it_is_delegated_to_and_until_when_is_signed_too(until: datetime):
    story = Story().opened()
    proof = ADA.sign("delegate", action_target("T1"), SHOWN, details=delegation_details("cy", until), at=NOON)
    story.then(policy.delegate(story.approval, Delegation(actor="ada", to="cy", until=until, at=NOON), proof))
    assert acts(story) == [(2, VerificationSummary.SIGNED)]
    assert acts(story.rewritten(2, details={**story.audit_log[1].details, "to": "eve"})) == [
        (2, VerificationSummary.BAD)
    ]
    assert acts(story.rewritten(2, details={})) == [(2, VerificationSummary.BAD)]


def test_who_asked_withdraws_without_being_an_approver():
    story = Story().opened()
    proof = key_of("req", Role.VIEWER).sign("withdraw", action_target("T1"), SHOWN, at=NOON)
    story.then(policy.withdraw(story.approval, "req", "", NOON, proof))
    assert acts(story) == [(2, VerificationSummary.SIGNED)]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"actor": "bob"}, "signed by ada"),
        ({"act": "reject"}, "another act"),
        ({"reason": "another"}, "another reason"),
        ({"at": NOON + timedelta(minutes=20)}, "more than 300 s ago"),
        ({"at": NOON + timedelta(hours=2)}, "expired"),
        ({"proof": signed().model_copy(update={"signature": "A" * 86})}, "not signed by the key of its credential"),
        ({"proof": signed(key_of("ada", issuer=PrivateKey.generate()))}, "issuer that isn't trusted"),
        ({"proof": signed(key_of("ada", Role.VIEWER))}, "requires the role approver"),
        ({"proof": signed(shown="0" * 64)}, "has changed since it was displayed to ada"),
        ({"proof": ADA.sign("approve", action_target("T2"), SHOWN, at=NOON)}, "another target"),
    ],
)
def test_a_chain_that_was_written_anew_does_not_make_a_signature(fields: dict[str, object], why: str):
    story = Story().opened().decided("ada", signed()).rewritten(2, **fields)
    check = check_approval(story.status, RULES)
    assert check.audit_log.intact
    assert not check.good
    assert why in str(check)
    assert "acts of people: 1 BADLY SIGNED" in str(check)


def test_a_credential_that_was_revoked_since_does_not_unmake_what_it_signed():
    story = Story().opened().decided("ada", signed())
    assert RULES.trusted_keys is not None
    revoking = replace(RULES, trusted_keys=replace(RULES.trusted_keys, revoked=frozenset({ADA.credential.serial})))
    assert acts(story, revoking) == [(2, VerificationSummary.SIGNED)]


def test_what_was_refused_proves_nothing_and_is_left_out():
    story = Story().opened().decided("eve", signed(key_of("eve")))
    assert story.audit_log[-1].result == "refused:not_an_approver"
    assert acts(story) == []


def test_a_broken_chain_and_another_payload_are_bad_whatever_is_signed():
    story = Story().opened().decided("ada", signed())
    forged = story.status.model_copy(update={"payload": {"amount": 6}})
    check = check_approval(forged, RULES)
    assert (check.good, check.audit_log.broken_at) == (False, 1)
    assert "the payload is another one" in str(check)
    story.audit_log[1] = story.audit_log[1].model_copy(update={"reason": "another"})
    assert check_approval(story.status, RULES).audit_log.broken_at == 2
