"""Hash chain of an audit log, and verification of the chain and the signatures in it.

Every entry carries a hash over itself and the previous hash, so one hash that is stored in another system proves all
entries up to it (Haber and Stornetta, How to Time-Stamp a Digital Document, 1991). An attacker with write access to the
whole state can build a new chain, but not the signatures in the entries.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Final, get_args

from pydantic import BaseModel, JsonValue

from perdure.approvals.messages import ApprovalStatus, AuditEntry
from perdure.approvals.signatures import SignableAction, action_target, role_for
from perdure.errors import PerdureTerminalError
from perdure.security.encodings import canonical_json, json_digest
from perdure.security.signed_actions import SigningMode, SigningRules

_SIGNABLE: Final = frozenset(get_args(SignableAction))
_SIGNED_DETAILS: Final = {"delegate": ("to", "until"), "revoke_links": ("person",)}


def chained(entry: AuditEntry, previous: str) -> AuditEntry:
    """Return an entry with its hash; the first entry follows the approval's ID."""
    return entry.model_copy(update={"hash": entry_hash(entry, previous)})


def entry_hash(entry: AuditEntry, previous: str) -> str:
    """Return the SHA-256 of an entry and the previous hash, in hexadecimal."""
    # Without defaults, so that a new field does not change the hashes of stored entries.
    content = entry.model_dump(mode="json", exclude={"hash"}, exclude_defaults=True)
    return hashlib.sha256(canonical_json({"entry": content, "previous": previous})).hexdigest()


class AuditLogCheck(BaseModel):
    """Result of verifying a hash chain.

    Args:
        entries: Number of verified entries.
        broken_at: First changed entry; None for an intact chain.
        why: The defect.
    """

    entries: int
    broken_at: int | None = None
    why: str = ""

    @property
    def intact(self) -> bool:
        """Whether no entry was changed."""
        return self.broken_at is None

    def __str__(self) -> str:
        if self.intact:
            return f"{self.entries} entries, chain intact"
        return f"entry {self.broken_at} of {self.entries}: {self.why}"


class SignatureStatus(StrEnum):
    """Authentication of an action in an audit log."""

    SIGNED = "signed"
    """The signature is valid for the actor and the action."""
    BY_LINK = "by link"
    """The service checked the token of a link; tokens are not stored."""
    UNSIGNED = "unsigned"
    """The caller named the actor."""
    UNCHECKED = "signed, not checked"
    """No trusted keys are configured."""
    BAD = "BADLY SIGNED"
    """The signature is invalid, or missing although it is required."""


class ActionCheck(BaseModel):
    """Result of verifying one action of a person.

    Args:
        entry: Position of the audit entry.
        actor: The actor.
        action: The action.
        status: Authentication of the action.
        why: The defect of the signature.
    """

    entry: int
    actor: str
    action: str
    status: SignatureStatus
    why: str = ""

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"entry {self.entry}: {self.action} by {self.actor}: {self.status}{why}"


class ApprovalCheck(BaseModel):
    """Result of verifying an approval.

    Args:
        audit_log: Result for the hash chain.
        actions: Results for the actions of people, in order, without refused actions.
    """

    audit_log: AuditLogCheck
    actions: list[ActionCheck]

    @property
    def good(self) -> bool:
        """Whether the chain is intact and no signature is bad."""
        return self.audit_log.intact and all(action.status is not SignatureStatus.BAD for action in self.actions)

    @property
    def lines(self) -> list[str]:
        """The results as lines of text."""
        lines = [str(self.audit_log), *map(str, self.actions)]
        if self.actions:
            counts = Counter(action.status for action in self.actions)
            lines.append("actions: " + ", ".join(f"{counts[each]} {each}" for each in SignatureStatus if counts[each]))
        if any(action.status is SignatureStatus.UNCHECKED for action in self.actions):
            lines.append("to verify signatures, set the issuers' public keys: --issuer-keys or PERDURE_ISSUER_KEYS")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines)


def check_approval(approval: ApprovalStatus, rules: SigningRules) -> ApprovalCheck:
    """Verify the hash chain, the payload digest and every signature of an approval.

    A signature is verified as of the time of its entry. A credential that expired or was revoked later stays valid
    for it.

    Args:
        approval: The approval's status.
        rules: The trusted keys, and whether actions must be signed.
    """
    return ApprovalCheck(audit_log=_check_log(approval), actions=_check_actions(approval, rules))


def verify_audit_log(approval_id: str, audit_log: Sequence[AuditEntry], *, head: str | None = None) -> AuditLogCheck:
    """Verify a hash chain.

    Args:
        approval_id: The approval; its ID begins the chain.
        audit_log: The entries.
        head: Hash of the last entry, stored in another system. Without it, removed last entries go undetected.
    """
    previous = approval_id
    for seq, entry in enumerate(audit_log, start=1):
        if entry.seq != seq:
            why = f"its position is {entry.seq}: an entry was removed, added or moved"
            return AuditLogCheck(entries=len(audit_log), broken_at=seq, why=why)
        if entry.hash != entry_hash(entry, previous):
            return AuditLogCheck(
                entries=len(audit_log), broken_at=seq, why="its hash differs: it or an earlier entry was changed"
            )
        previous = entry.hash
    if head is not None and head != (audit_log[-1].hash if audit_log else ""):
        why = "the last hash differs: entries at the end were removed or added"
        return AuditLogCheck(entries=len(audit_log), broken_at=len(audit_log) + 1, why=why)
    return AuditLogCheck(entries=len(audit_log))


def _check_log(approval: ApprovalStatus) -> AuditLogCheck:
    check = verify_audit_log(approval.approval_id, approval.audit_log, head=approval.head)
    if not check.intact:
        return check
    opened = next((entry for entry in approval.audit_log if entry.result == "opened"), None)
    if opened is None:
        return AuditLogCheck(entries=check.entries, broken_at=1, why="no entry records the opening")
    if not opened.details.get("payload_digest") == json_digest(approval.payload) == approval.payload_digest:
        why = "the payload differs from the one at the opening"
        return AuditLogCheck(entries=check.entries, broken_at=opened.seq, why=why)
    return check


def _check_actions(approval: ApprovalStatus, rules: SigningRules) -> list[ActionCheck]:
    checks = []
    early: dict[tuple[str, str], AuditEntry] = {}
    for entry in approval.audit_log:
        if entry.actor is None or entry.action not in _SIGNABLE or entry.result.startswith("refused:"):
            continue
        # An early vote has two entries: the first carries the signature, the second counts.
        if entry.result == "early":
            early[entry.actor, entry.action] = entry
        signed = early.get((entry.actor, entry.action), entry) if entry.signed_action is None else entry
        status, why = _check_signature(approval, entry, signed, rules)
        checks.append(ActionCheck(entry=entry.seq, actor=entry.actor, action=entry.action, status=status, why=why))
    return checks


def _check_signature(
    approval: ApprovalStatus, entry: AuditEntry, signed: AuditEntry, rules: SigningRules
) -> tuple[SignatureStatus, str]:
    signed_action = signed.signed_action
    if entry.details.get("by") == "link":
        return SignatureStatus.BY_LINK, ""
    if signed_action is None:
        if rules.mode is SigningMode.SIGNED:
            return SignatureStatus.BAD, "no signature, although it is required"
        return SignatureStatus.UNSIGNED, ""
    if rules.trusted_keys is None:
        return SignatureStatus.UNCHECKED, ""
    fields = _SIGNED_DETAILS.get(entry.action)
    details: JsonValue = None if fields is None else {field: entry.details.get(field) for field in fields}
    try:
        replace(rules.trusted_keys, revoked=frozenset()).verify(
            signed_action,
            action=entry.action,
            target=action_target(approval.approval_id),
            # An early vote may be about any payload; it is compared when it counts.
            payload_digest=signed_action.payload_digest if entry.result == "early" else approval.payload_digest,
            now=signed.at,
            actor=entry.actor or "",
            reason=entry.reason,
            details=details,
            role=role_for(entry.action),
        )
    except PerdureTerminalError as error:
        return SignatureStatus.BAD, f"as of {signed.at:%Y-%m-%d %H:%M:%S %Z}, {error.message}"
    return SignatureStatus.SIGNED, ""
