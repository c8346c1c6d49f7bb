from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.serdes import serde_for
from perdure.approvals.audit_log import chained, verify_audit_log
from perdure.approvals.messages import AuditEntry

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def audit_log_of(length: int, approval_id: str = "T1") -> list[AuditEntry]:
    audit_log: list[AuditEntry] = []
    for seq in range(1, length + 1):
        at = NOON + timedelta(minutes=seq, microseconds=seq)
        entry = AuditEntry(seq=seq, at=at, actor=f"p{seq}", action="approve", reason="r", result="counted")
        audit_log.append(chained(entry, audit_log[-1].hash if audit_log else approval_id))
    return audit_log


def test_chain_survives_serialization():
    serde = serde_for(list[AuditEntry])
    audit_log = audit_log_of(5)
    read = serde.deserialize(serde.serialize(audit_log))
    assert read is not None
    check = verify_audit_log("T1", read, head=audit_log[-1].hash)
    assert (check.intact, str(check)) == (True, "5 entries, chain intact")
    assert verify_audit_log("T1", []).intact


def test_hash_of_canonical_json():
    """Another hash function would invalidate all stored audit logs."""
    entry = AuditEntry(seq=1, at=NOON, actor="ada", action="approve", reason="é", result="approved")
    # sha256 of {"entry":{"action":"approve","actor":"ada","at":"2030-01-01T12:00:00Z","reason":"é","result":"approved",
    # "seq":1},"previous":"T1"}
    assert chained(entry, "T1").hash == "8c66e5052a3472cbdf7a8ef2f02f678e32e3779491953e98e5f559d968bb8f6b"


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "eve"},
        {"at": NOON},
        {"action": "reject"},
        {"reason": "another"},
        {"result": "approved"},
        {"details": {"unsigned": "yes"}},
        {"hash": "0" * 64},
    ],
)
@given(st.integers(0, 4))
def test_detect_changed_entry(change: dict[str, object], position: int):
    audit_log = audit_log_of(5)
    audit_log[position] = audit_log[position].model_copy(update=change)
    assert verify_audit_log("T1", audit_log, head=audit_log[-1].hash).broken_at == position + 1


@given(st.integers(0, 4), st.data())
def test_detect_removed_added_and_moved_entries(position: int, data: st.DataObject):
    audit_log, head = audit_log_of(5), audit_log_of(5)[-1].hash
    missing = audit_log[:position] + audit_log[position + 1 :]
    assert not verify_audit_log("T1", missing, head=head).intact
    assert not verify_audit_log("T1", [*audit_log, audit_log[position]], head=head).intact
    other = data.draw(st.integers(0, 4).filter(lambda number: number != position))
    audit_log[position], audit_log[other] = audit_log[other], audit_log[position]
    assert verify_audit_log("T1", audit_log, head=head).broken_at == min(position, other) + 1


def test_detect_truncation_with_head():
    audit_log = audit_log_of(3)
    assert verify_audit_log("T2", audit_log).broken_at == 1
    assert verify_audit_log("T1", audit_log[:2]).intact
    check = verify_audit_log("T1", audit_log[:2], head=audit_log[-1].hash)
    assert (check.broken_at, "the last hash differs" in check.why) == (3, True)
    renumbered = [audit_log[0], audit_log[2].model_copy(update={"seq": 2})]
    assert verify_audit_log("T1", renumbered).broken_at == 2
