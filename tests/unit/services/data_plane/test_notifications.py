from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from perdure.approvals.notices import ApprovalNotice
from perdure.errors import Conflict
from services.contracts.notifications import SendNotification
from services.data_plane.notifications.model import ApprovalNoticeRow, NotificationRow
from tests.unit.services.data_plane.agency import Agency


async def test_a_message_is_sent_once(agency: Agency) -> None:
    first = await agency.notify("T1", "trip-confirmed")
    assert await agency.notify("T1", "trip-confirmed") == first
    async with agency.database.snapshot() as connection:
        query = select(NotificationRow.trip_id, NotificationRow.kind, NotificationRow.recipient, NotificationRow.text)
        rows = [tuple(row) for row in await connection.execute(query)]
    assert rows == [("T1", "trip-confirmed", "ada@example.com", "Your trip-confirmed")]


async def test_another_text_under_the_same_key_is_a_conflict(agency: Agency) -> None:
    await agency.notify("T1", "trip-refused")
    changed = SendNotification(
        key="trip:T1:trip-refused", trip_id="T1", kind="trip-refused", recipient="ada@example.com", text="Other"
    )
    with pytest.raises(Conflict, match="already stands for another"):
        await agency.outbox.notify(changed)


async def test_an_approver_is_told_once(agency: Agency) -> None:
    notice = ApprovalNotice(
        key="approval:1",
        kind="asked",
        approval_id="T1",
        to="group:finance",
        title="Trip of ada",
        requester="ada@example.com",
        until=datetime(2030, 1, 1, tzinfo=UTC),
    )
    first = await agency.outbox.tell_approver(notice)
    assert await agency.outbox.tell_approver(notice.model_copy(update={"title": "Another"})) == first
    async with agency.database.snapshot() as connection:
        query = select(ApprovalNoticeRow.approval_id, ApprovalNoticeRow.kind, ApprovalNoticeRow.recipient)
        rows = [tuple(row) for row in await connection.execute(query)]
    assert rows == [("T1", "asked", "group:finance")]
