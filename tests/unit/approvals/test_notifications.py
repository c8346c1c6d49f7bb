from __future__ import annotations

from datetime import UTC, datetime

import pytest

from perdure.approvals.links import LinkMinter
from perdure.approvals.notifications import ApprovalNotification, Recipient, notification_key
from perdure.errors import ConfigurationError
from perdure.idempotency import check_idempotency_key
from perdure.security import PrivateKey, json_digest, read_link

NOTIFICATION = ApprovalNotification(
    key="approval:k",
    kind="delegated",
    approval_id="T1",
    to="cy",
    title="Trip of ada",
    requester="ada",
    subject="zoe",
    payload_digest=json_digest(None),
    at=datetime(2030, 1, 1, 10, tzinfo=UTC),
    until=datetime(2030, 1, 1, 12, tzinfo=UTC),
    delegated_by="bob",
)


def test_text_names_event_people_and_deadline():
    assert NOTIFICATION.text == (
        "bob delegated an approval to you: Trip of ada, requested by ada (unverified), for zoe.\n"
        "Vote before 2030-01-01 12:00 UTC."
    )


def test_link_of_notification():
    key = PrivateKey.generate()
    minter = LinkMinter(key, "https://console.example.com/")
    address = minter.link(NOTIFICATION)
    assert address is not None
    assert address == minter.link(NOTIFICATION), "repeated deliveries have one link"
    assert address.startswith("https://console.example.com/l/")
    link = read_link(address.rpartition("/")[2], [key.public], now=NOTIFICATION.at)
    assert (link.person, link.approval_id, link.issued_at, link.expires_at) == (
        "cy",
        "T1",
        NOTIFICATION.at,
        NOTIFICATION.until,
    )
    link.check(approval_id="T1", payload_digest=json_digest(None))
    other = minter.link(NOTIFICATION.model_copy(update={"key": "approval:other"}))
    assert other is not None
    assert read_link(other.rpartition("/")[2], [key.public], now=NOTIFICATION.at).nonce != link.nonce
    for name in ("group:finance", "anyone"):
        assert minter.link(NOTIFICATION.model_copy(update={"to": name})) is None
    with pytest.raises(ConfigurationError, match="console_url"):
        LinkMinter(key, "")


def test_notification_key_is_stable():
    ada = Recipient(name="ada", until=datetime(2030, 1, 1, tzinfo=UTC))
    key = notification_key("T1", "reminder", 0, 1, ada)
    assert key == notification_key("T1", "reminder", 0, 1, ada)
    others = [
        notification_key("T2", "reminder", 0, 1, ada),
        notification_key("T1", "asked", 0, 1, ada),
        notification_key("T1", "reminder", 1, 1, ada),
        notification_key("T1", "reminder", 0, 2, ada),
        notification_key("T1", "reminder", 0, 1, ada.model_copy(update={"name": "bob"})),
        notification_key("x" * 256, "reminder", 0, 1, ada.model_copy(update={"name": "y" * 206})),
    ]
    assert len({key, *others}) == 7
    assert all(check_idempotency_key(each) == each for each in others)
