from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from perdure.approvals import policy
from perdure.approvals.audit_log import ActionCheck, SignatureStatus, chained, check_approval
from perdure.approvals.messages import ApprovalStatus, AuditEntry, Delegation, Vote
from perdure.approvals.policy import Change
from perdure.approvals.request import ApprovalRequest
from perdure.approvals.schema import Approval
from perdure.approvals.signatures import action_target, delegation_details
from perdure.security import (
    ActorKey,
    PrivateKey,
    PublicKey,
    Role,
    SignedAction,
    SigningMode,
    SigningRules,
    TrustedKeys,
    json_digest,
)

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ISSUER = PrivateKey.generate()
PAYLOAD = {"amount": 5}
DIGEST = json_digest(PAYLOAD)


def trusting(*issuers: PublicKey, mode: SigningMode = SigningMode.UNSIGNED) -> SigningRules:
    return SigningRules(mode=mode, trusted_keys=TrustedKeys(issuers=issuers))


RULES = trusting(ISSUER.public)


def key_of(actor: str, role: Role = Role.APPROVER, issuer: PrivateKey = ISSUER) -> ActorKey:
    return ActorKey.issue(issuer, actor=actor, roles=[role], lifetime=HOUR, now=NOON)


ADA = key_of("ada")


class History:
    """An approval and its audit log."""

    def __init__(self) -> None:
        self.approval = Approval(approval_id="T1")
        self.audit_log: list[AuditEntry] = []

    def then(self, change: Change) -> None:
        self.approval = change.approval
        self.audit_log.extend(change.entries)

    def opened(self) -> History:
        request = ApprovalRequest(
            approval_id="T1", title="?", requester="req", approvers=["ada", "bob"], quorum=2, timeout=HOUR,
            payload=PAYLOAD, wait="a1", awakeable="wa1", opener="inv_1",
        )  # fmt: skip
        self.then(policy.open_approval(self.approval, request, NOON))
        return self

    def decided(self, actor: str, signature: SignedAction | None, *, reason: str = "", by: str = "") -> History:
        digest = signature.payload_digest if signature is not None and self.approval.rules is None else None
        vote = Vote(
            actor=actor, approve=True, reason=reason, at=NOON, signed=bool(signature or by), payload_digest=digest
        )
        self.then(policy.decide(self.approval, vote, signature, by=by))
        return self

    @property
    def status(self) -> ApprovalStatus:
        return ApprovalStatus(
            approval_id="T1", status=self.approval.state, title="?", requester="req", approvers=["ada", "bob"],
            quorum=2, payload=PAYLOAD, payload_digest=DIGEST, opened_at=NOON, deadline=NOON + HOUR, decided_at=None,
            decided_by=[], reason="", decisions=[], refusals=0, audit_log=self.audit_log, head=self.audit_log[-1].hash,
        )  # fmt: skip

    def rewritten(self, seq: int, **fields: object) -> History:
        """Change an entry and rebuild the chain, as an attacker with write access to the storage could."""
        self.audit_log[seq - 1] = self.audit_log[seq - 1].model_copy(update=fields)
        for index, entry in enumerate(self.audit_log):
            self.audit_log[index] = chained(entry, self.audit_log[index - 1].hash if index else "T1")
        return self


def signed(key: ActorKey = ADA, action: str = "approve", digest: str = DIGEST, reason: str = "") -> SignedAction:
    return key.sign(action, action_target("T1"), digest, reason=reason, at=NOON)


def statuses(history: History, rules: SigningRules = RULES) -> list[tuple[int, SignatureStatus]]:
    check = check_approval(history.status, rules)
    assert check.audit_log.intact
    return [(action.entry, action.status) for action in check.actions]


def test_report_signature_status_of_each_action():
    history = History().opened().decided("ada", signed(reason="fine"), reason="fine").decided("bob", None)
    check = check_approval(history.status, RULES)
    assert check.good
    assert str(check).splitlines() == [
        "3 entries, chain intact",
        "entry 2: approve by ada: signed",
        "entry 3: approve by bob: unsigned",
        "actions: 1 signed, 1 unsigned",
    ]


def test_report_link_votes_as_by_link():
    history = History().opened().decided("ada", None, by="link")
    assert statuses(history, trusting(ISSUER.public, mode=SigningMode.SIGNED)) == [(2, SignatureStatus.BY_LINK)]


def test_missing_required_signature_is_bad():
    history = History().opened().decided("ada", None)
    check = check_approval(history.status, trusting(ISSUER.public, mode=SigningMode.SIGNED))
    assert not check.good
    assert check.actions == [
        ActionCheck(
            entry=2,
            actor="ada",
            action="approve",
            status=SignatureStatus.BAD,
            why="no signature, although it is required",
        )
    ]


def test_signatures_are_unchecked_without_issuers():
    check = check_approval(History().opened().decided("ada", signed()).status, SigningRules())
    assert check.good
    assert "entry 2: approve by ada: signed, not checked" in str(check)
    assert "--issuer-keys" in str(check)


def test_early_vote_signature_covers_counted_entry():
    history = History().decided("ada", signed()).decided("bob", None).opened()
    assert [(entry.action, entry.result) for entry in history.audit_log] == [
        ("approve", "early"),
        ("approve", "early"),
        ("open", "opened"),
        ("approve", "counted"),
        ("approve", "approved"),
    ]
    assert statuses(history) == [
        (1, SignatureStatus.SIGNED),
        (2, SignatureStatus.UNSIGNED),
        (4, SignatureStatus.SIGNED),
        (5, SignatureStatus.UNSIGNED),
    ]


def test_early_vote_for_other_payload_is_bad():
    history = History().decided("ada", signed(digest="0" * 64)).opened()
    assert statuses(history) == [(1, SignatureStatus.SIGNED)]
    history.rewritten(3, result="counted")
    assert statuses(history) == [(1, SignatureStatus.SIGNED), (3, SignatureStatus.BAD)]


@pytest.mark.parametrize("until", [NOON + HOUR, NOON + timedelta(minutes=7, microseconds=123_456)])
def test_delegation_details_are_signed(until: datetime):
    history = History().opened()
    signature = ADA.sign("delegate", action_target("T1"), DIGEST, details=delegation_details("cy", until), at=NOON)
    history.then(policy.delegate(history.approval, Delegation(actor="ada", to="cy", until=until, at=NOON), signature))
    assert statuses(history) == [(2, SignatureStatus.SIGNED)]
    assert statuses(history.rewritten(2, details={**history.audit_log[1].details, "to": "eve"})) == [
        (2, SignatureStatus.BAD)
    ]
    assert statuses(history.rewritten(2, details={})) == [(2, SignatureStatus.BAD)]


def test_withdrawal_needs_no_approver_role():
    history = History().opened()
    signature = key_of("req", Role.VIEWER).sign("withdraw", action_target("T1"), DIGEST, at=NOON)
    history.then(policy.withdraw(history.approval, "req", "", NOON, signature))
    assert statuses(history) == [(2, SignatureStatus.SIGNED)]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"actor": "bob"}, "signed by ada"),
        ({"action": "reject"}, "another act"),
        ({"reason": "another"}, "another reason"),
        ({"at": NOON + timedelta(minutes=20)}, "more than 300 s ago"),
        ({"at": NOON + timedelta(hours=2)}, "expired"),
        (
            {"signed_action": signed().model_copy(update={"signature": "A" * 86})},
            "not signed by the key of its credential",
        ),
        ({"signed_action": signed(key_of("ada", issuer=PrivateKey.generate()))}, "issuer that isn't trusted"),
        ({"signed_action": signed(key_of("ada", Role.VIEWER))}, "requires the role approver"),
        ({"signed_action": signed(digest="0" * 64)}, "has changed since it was displayed to ada"),
        ({"signed_action": ADA.sign("approve", action_target("T2"), DIGEST, at=NOON)}, "another target"),
    ],
)
def test_rebuilt_chain_does_not_forge_signature(fields: dict[str, object], why: str):
    history = History().opened().decided("ada", signed()).rewritten(2, **fields)
    check = check_approval(history.status, RULES)
    assert check.audit_log.intact
    assert not check.good
    assert why in str(check)
    assert "actions: 1 BADLY SIGNED" in str(check)


def test_later_revocation_keeps_signature_valid():
    history = History().opened().decided("ada", signed())
    assert RULES.trusted_keys is not None
    revoking = replace(RULES, trusted_keys=replace(RULES.trusted_keys, revoked=frozenset({ADA.credential.serial})))
    assert statuses(history, revoking) == [(2, SignatureStatus.SIGNED)]


def test_refused_actions_are_not_verified():
    history = History().opened().decided("eve", signed(key_of("eve")))
    assert history.audit_log[-1].result == "refused:not_an_approver"
    assert statuses(history) == []


def test_detect_changed_payload_and_broken_chain():
    history = History().opened().decided("ada", signed())
    forged = history.status.model_copy(update={"payload": {"amount": 6}})
    check = check_approval(forged, RULES)
    assert (check.good, check.audit_log.broken_at) == (False, 1)
    assert "the payload differs" in str(check)
    history.audit_log[1] = history.audit_log[1].model_copy(update={"reason": "another"})
    assert check_approval(history.status, RULES).audit_log.broken_at == 2
