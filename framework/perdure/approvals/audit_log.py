"""The chain of an audit log: each entry carries a hash over itself and the hash of the one before.

Whoever changes, removes or inserts an entry changes every hash after it, so one hash that is noted elsewhere (in a
report, or on paper) proves the whole audit log up to there. The idea is that of Haber and Stornetta, How to Time-Stamp
a Digital Document (1991). Against somebody who can rewrite the whole state, the signatures in the entries hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydantic import BaseModel

from perdure.approvals.messages import AuditEntry
from perdure.security.encodings import canonical_json


class AuditLogCheck(BaseModel):
    """What a check of an audit log found.

    Args:
        entries: How many entries were looked at.
        broken_at: The first entry that is not as it was written; None when the chain is intact.
        why: What is wrong there.
    """

    entries: int
    broken_at: int | None = None
    why: str = ""

    @property
    def intact(self) -> bool:
        """True when nothing was changed."""
        return self.broken_at is None

    def __str__(self) -> str:
        if self.intact:
            return f"{self.entries} entries, chain intact"
        return f"entry {self.broken_at} of {self.entries}: {self.why}"


def chained(entry: AuditEntry, previous: str) -> AuditEntry:
    """Return an entry with its hash.

    Args:
        entry: The entry.
        previous: The hash of the entry before; for the first one, the approval's id.
    """
    return entry.model_copy(update={"hash": entry_hash(entry, previous)})


def entry_hash(entry: AuditEntry, previous: str) -> str:
    """Return the SHA-256 of an entry and the hash before it, in hexadecimal.

    Args:
        entry: The entry; its own hash doesn't matter.
        previous: See `chained`.
    """
    # Without defaults, so that a field that is added to entries later leaves the hashes of older ones alone.
    content = entry.model_dump(mode="json", exclude={"hash"}, exclude_defaults=True)
    return hashlib.sha256(canonical_json({"entry": content, "previous": previous})).hexdigest()


def verify_audit_log(approval_id: str, audit_log: Sequence[AuditEntry], *, head: str | None = None) -> AuditLogCheck:
    """Check that an audit log is as it was written.

    Args:
        approval_id: The approval; its id is the beginning of the chain.
        audit_log: Its entries, in order.
        head: The last entry's hash, as it was noted elsewhere; without it, entries that were cut off at the end don't
            show.

    Returns:
        What was found.
    """
    previous = approval_id
    for seq, entry in enumerate(audit_log, start=1):
        if entry.seq != seq:
            why = f"it says that it is entry {entry.seq}; one was removed, added or moved"
            return AuditLogCheck(entries=len(audit_log), broken_at=seq, why=why)
        if entry.hash != entry_hash(entry, previous):
            why = "it, or what is before it, was changed: its hash is another one"
            return AuditLogCheck(entries=len(audit_log), broken_at=seq, why=why)
        previous = entry.hash
    if head is not None and head != (audit_log[-1].hash if audit_log else ""):
        why = "the audit log ends elsewhere than it did: entries were cut off, or added"
        return AuditLogCheck(entries=len(audit_log), broken_at=len(audit_log) + 1, why=why)
    return AuditLogCheck(entries=len(audit_log))
