"""What an approval's audit log proves: that it is as it was written, and who signed what in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from enum import StrEnum
from typing import Final, get_args

from pydantic import BaseModel, JsonValue

from perdure.approvals.audit_log import AuditLogCheck, verify_audit_log
from perdure.approvals.messages import ApprovalStatus, AuditEntry
from perdure.approvals.rules import payload_digest
from perdure.approvals.signatures import SignableAction, action_target, role_for
from perdure.errors import PerdureTerminalError
from perdure.security.signed_actions import SigningMode, SigningRules

__all__ = ["ActionCheck", "ApprovalCheck", "VerificationSummary", "check_approval"]

_PROVABLE: Final = frozenset(get_args(SignableAction))

_DETAILS: Final = {"delegate": ("to", "until"), "revoke_links": ("person",)}


class VerificationSummary(StrEnum):
    """What is known of who did something."""

    SIGNED = "signed"
    """By whom it says, and for what it says."""
    BY_LINK = "by link"
    """The service checked the link's token, which is a secret and not kept."""
    UNSIGNED = "unsigned"
    """By whom the caller said, where unsigned acts are taken."""
    UNCHECKED = "signed, not checked"
    """No issuer's key is known to check it by."""
    BAD = "BADLY SIGNED"
    """The signature isn't what the entry says, or is missing though one is needed."""


class ActionCheck(BaseModel):
    """What a check found of one person's act.

    Args:
        entry: The number of its entry.
        actor: Who did it, as the entry says.
        act: What.
        standing: What is known of that.
        why: What is wrong with the signature.
    """

    entry: int
    actor: str
    act: str
    standing: VerificationSummary
    why: str = ""

    def __str__(self) -> str:
        return f"entry {self.entry}: {self.act} by {self.actor}: {self.standing}" + (
            f": {self.why}" if self.why else ""
        )


class ApprovalCheck(BaseModel):
    """What a check of an approval found.

    Args:
        audit_log: What was found of the audit log's chain.
        acts: What was found of what people did, in order. Refused acts are left out: nothing came of them.
    """

    audit_log: AuditLogCheck
    acts: list[ActionCheck]

    @property
    def good(self) -> bool:
        """True when nothing was changed, and no signature is bad."""
        return self.audit_log.intact and all(act.standing is not VerificationSummary.BAD for act in self.acts)

    @property
    def lines(self) -> list[str]:
        """The findings, one a line."""
        lines = [str(self.audit_log), *map(str, self.acts)]
        if self.acts:
            counts = Counter(act.standing for act in self.acts)
            found = ", ".join(
                f"{counts[standing]} {standing}" for standing in VerificationSummary if standing in counts
            )
            lines.append(f"acts of people: {found}")
        if any(act.standing is VerificationSummary.UNCHECKED for act in self.acts):
            lines.append("to check signatures, name the issuers' public keys: --issuer-keys, or PERDURE_ISSUER_KEYS")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines)


def check_approval(found: ApprovalStatus, rules: SigningRules) -> ApprovalCheck:
    """Check the audit log's chain, the payload's digest and each signature.

    A signature is judged as of the moment of its entry, as the service did: a credential that has expired or was
    revoked since then doesn't unmake what was signed with it.

    Args:
        found: The approval, as the service shows it.
        rules: Whose word counts; and whether an act without a signature is a bad one.
    """
    return ApprovalCheck(audit_log=_check_audit_log(found), acts=_check_acts(found, rules))


def _check_audit_log(found: ApprovalStatus) -> AuditLogCheck:
    check = verify_audit_log(found.approval_id, found.audit_log, head=found.head)
    if not check.intact:
        return check
    opened = next((entry for entry in found.audit_log if entry.result == "opened"), None)
    if opened is None:
        return AuditLogCheck(entries=check.entries, broken_at=1, why="no entry says that it was opened")
    if not opened.details.get("payload_digest") == payload_digest(found.payload) == found.payload_digest:
        why = "the payload is another one than it was opened with"
        return AuditLogCheck(entries=check.entries, broken_at=opened.seq, why=why)
    return check


def _check_acts(found: ApprovalStatus, rules: SigningRules) -> list[ActionCheck]:
    checks = []
    early: dict[tuple[str, str], AuditEntry] = {}
    for entry in found.audit_log:
        if entry.actor is None or entry.act not in _PROVABLE or entry.result.startswith("refused:"):
            continue
        # A decision that came early has two entries: it was signed with the first, and counts with the second.
        if entry.result == "kept":
            early[entry.actor, entry.act] = entry
        signed = early.get((entry.actor, entry.act), entry) if entry.proof is None else entry
        standing, why = _judge(found, entry, signed, rules)
        checks.append(ActionCheck(entry=entry.seq, actor=entry.actor, act=entry.act, standing=standing, why=why))
    return checks


def _judge(
    found: ApprovalStatus, entry: AuditEntry, signed: AuditEntry, rules: SigningRules
) -> tuple[VerificationSummary, str]:
    proof = signed.proof
    if entry.details.get("by") == "link":
        return VerificationSummary.BY_LINK, ""
    if proof is None:
        needed = rules.mode is SigningMode.SIGNED
        return (
            (VerificationSummary.BAD, "it has no signature, though it needs one")
            if needed
            else (VerificationSummary.UNSIGNED, "")
        )
    if rules.trusted_keys is None:
        return VerificationSummary.UNCHECKED, ""
    try:
        replace(rules.trusted_keys, revoked=frozenset()).verify(
            proof,
            action=entry.act,
            target=action_target(found.approval_id),
            # As long as it is only kept, it may be about anything.
            payload_digest=proof.payload_digest if entry.result == "kept" else found.payload_digest,
            now=signed.at,
            actor=entry.actor or "",
            reason=entry.reason,
            details=_signed_details(entry),
            role=role_for(entry.act),
        )
    except PerdureTerminalError as error:
        return VerificationSummary.BAD, f"as of {signed.at:%Y-%m-%d %H:%M:%S %Z}, {error.message}"
    return VerificationSummary.SIGNED, ""


def _signed_details(entry: AuditEntry) -> JsonValue:
    """Return what an entry's signature is over besides the act."""
    fields = _DETAILS.get(entry.act)
    return None if fields is None else {field: entry.details.get(field) for field in fields}
