"""Versions of stored records."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from perdure import SagaConfig
from perdure._runtime.records import RECORD_VERSION, StoredRecord
from perdure.approvals.schema import Approval, Principal
from perdure.retry import RetryPolicy
from perdure.saga.messages import DeadLetter
from perdure.saga.schema import (
    AuditEntry,
    ClosedSaga,
    OperatorAction,
    RollbackProgress,
    StepProgress,
    StepRecord,
    StoredRollback,
)
from perdure.saga.status import CompensationState, SagaPhase
from perdure.schedules.schema import ScheduleProgress, ScheduleSequence

AT = datetime(2026, 1, 1, tzinfo=UTC)
PENDING = CompensationState.PENDING
STEP = StepRecord(position=1, step="a", step_id="1", retry=RetryPolicy(max_attempts=None))
RECORDS: list[StoredRecord] = [
    STEP,
    ClosedSaga(phase=SagaPhase.COMPLETED),
    StoredRollback(
        saga_id="s", execution="s@1", service="S", steps=[STEP], reason="r", config=SagaConfig(max_attempts=2)
    ),
    StepProgress(trying_since=AT),
    RollbackProgress(started_at=AT, updated_at=AT),
    AuditEntry(
        number=1, at=AT, actor="a", action=OperatorAction.SKIP, step="a", position=1, before=PENDING, after=PENDING
    ),
    DeadLetter(
        id="s/1",
        saga_id="s",
        service="S",
        step="a",
        position=1,
        compensation="c",
        error="e",
        signature="e",
        reason="r",
        attempts=1,
        since=AT,
    ),
    ScheduleSequence(),
    ScheduleProgress(anchor=AT, created_at=AT, updated_at=AT),
    Approval(approval_id="a"),
    Principal(),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_stored_record_survives_round_trip(record):
    written = record.model_dump_json()
    assert json.loads(written)["record_version"] == RECORD_VERSION
    assert type(record).model_validate_json(written) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
@given(version=st.integers(-5, 10**6).filter(lambda version: version != RECORD_VERSION) | st.none())
def test_refuse_record_of_another_version(record, version):
    content: dict[str, Any] = json.loads(record.model_dump_json())
    del content["record_version"]
    if version is not None:
        content["record_version"] = version
    with pytest.raises(ValidationError, match=f"the record has version {version or 0}, and this code reads version 1"):
        type(record).model_validate_json(json.dumps(content))
