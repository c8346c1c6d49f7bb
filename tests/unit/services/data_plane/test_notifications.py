from __future__ import annotations

import smtplib
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from perdure.approvals.links import LinkMinter
from perdure.approvals.notifications import ApprovalNotification
from perdure.errors import ConfigurationError, Conflict
from perdure.security import PrivateKey, json_digest, read_link
from services.contracts.notifications import SendNotification
from services.data_plane.notifications.mail import Mail, MailServer
from services.data_plane.notifications.model import Outbox
from services.data_plane.notifications.tables import ApprovalNoticeRow, NotificationRow
from tests.mailbox import Mailbox, mailbox
from tests.unit.services.data_plane.agency import Agency


async def test_message_is_sent_once(agency: Agency) -> None:
    first = await agency.notify("T1", "trip-confirmed")
    assert await agency.notify("T1", "trip-confirmed") == first
    async with agency.databases["notifications"].snapshot() as connection:
        query = select(NotificationRow.trip_id, NotificationRow.kind, NotificationRow.recipient, NotificationRow.text)
        rows = [tuple(row) for row in await connection.execute(query)]
    assert rows == [("T1", "trip-confirmed", "ada@example.com", "Your trip-confirmed")]


async def test_reused_key_with_other_text_conflicts(agency: Agency) -> None:
    await agency.notify("T1", "trip-refused")
    changed = SendNotification(
        key="trip:T1:trip-refused", trip_id="T1", kind="trip-refused", recipient="ada@example.com", text="Other"
    )
    with pytest.raises(Conflict, match="was used for a different"):
        await agency.outbox.notify(changed)


def notice_to(name: str, **changes: Any) -> ApprovalNotification:
    fields = {
        "key": "approval:1",
        "kind": "asked",
        "approval_id": "T1",
        "to": name,
        "title": "Trip of ada",
        "requester": "ada@example.com",
        "payload_digest": json_digest(None),
        "at": datetime(2029, 12, 31, tzinfo=UTC),
        "until": datetime(2030, 1, 1, tzinfo=UTC),
    }
    return ApprovalNotification.model_validate({**fields, **changes})


async def recorded(agency: Agency) -> list[tuple[str, ...]]:
    async with agency.databases["notifications"].snapshot() as connection:
        row = ApprovalNoticeRow
        query = select(row.approval_id, row.kind, row.recipient, row.text)
        return [tuple(each) for each in await connection.execute(query)]


async def test_approver_is_notified_once(agency: Agency) -> None:
    notice = notice_to("group:finance")
    first = await agency.outbox.tell_approver(notice)
    assert await agency.outbox.tell_approver(notice.model_copy(update={"title": "Another"})) == first
    assert [row[:3] for row in await recorded(agency)] == [("T1", "asked", "group:finance")]


KEY = PrivateKey.generate()


def mail_to(box: Mailbox) -> Mail:
    minter = LinkMinter(KEY, "https://console.example.com")
    return Mail(MailServer.parse(SecretStr(box.url)), "trips@example.com", minter)


async def test_mail_has_link_and_database_none(agency: Agency) -> None:
    async with mailbox() as box:
        outbox = Outbox(agency.databases["notifications"], mail_to(box))
        notice = notice_to("grace@example.com", title="Trip of ada\nBcc: eve@example.com")
        for _ in range(2):
            await outbox.tell_approver(notice)
        (mail,) = box.mails
    text = mail.get_content()
    token = text.rpartition("Decide here: https://console.example.com/l/")[2].strip()
    link = read_link(token, [KEY.public], now=notice.at)
    assert (link.person, link.approval_id, link.expires_at) == ("grace@example.com", "T1", notice.until)
    assert (mail["To"], mail["From"], mail["Bcc"]) == ("grace@example.com", "trips@example.com", None)
    assert mail["Subject"] == "Trip of ada Bcc: eve@example.com"
    assert mail["Message-ID"] == "<approval.1@example.com>"
    ((_, _, recipient, kept),) = await recorded(agency)
    assert (recipient, kept) == ("grace@example.com", notice.text)
    assert "/l/" not in kept


async def test_refused_mail_is_sent_again(agency: Agency) -> None:
    async with mailbox() as box:
        box.refusals = 1
        outbox, notice = Outbox(agency.databases["notifications"], mail_to(box)), notice_to("grace@example.com")
        with pytest.raises(OSError, match="try again later"):
            await outbox.tell_approver(notice)
        assert (box.mails, await recorded(agency)) == ([], [])
        await outbox.tell_approver(notice)
        assert len(box.to("grace@example.com")) == 1


async def test_only_addresses_get_mail(agency: Agency) -> None:
    async with mailbox() as box:
        outbox = Outbox(agency.databases["notifications"], mail_to(box))
        names = [
            "group:finance",
            "anyone",
            "grace",
            "grace@",
            "@example.com",
            "a b@example.com",
            "gr\u00e4ce@example.com",
        ]
        for number, name in enumerate(names):
            await outbox.tell_approver(notice_to(name, key=f"approval:{number}"))
        assert box.mails == []
        assert len(await recorded(agency)) == len(names)


def test_remote_mail_server_needs_tls() -> None:
    for url, expected in {
        "smtp://mail.example.com": ("mail.example.com", 587, False),
        "smtps://u%40x:p%3Aw@mail.example.com:4465": ("mail.example.com", 4465, True),
    }.items():
        server = MailServer.parse(SecretStr(url))
        assert (server.host, server.port, server.implicit_tls) == expected
    assert (server.user, server.password.get_secret_value()) == ("u@x", "p:w")
    assert "p:w" not in repr(server)
    for url in ("mail.example.com", "http://secret@mail", "smtp://", "smtp://host:port", "smtp://[::1"):
        with pytest.raises(ConfigurationError) as caught:
            MailServer.parse(SecretStr(url))
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="SMTP_FROM"):
        Mail(server, "")


async def test_mail_never_leaves_in_clear() -> None:
    # A local address that the settings do not recognise as local; the server offers no STARTTLS.
    async with mailbox("127.0.0.2") as box:
        mail = Mail(MailServer.parse(SecretStr(box.url)), "trips@example.com")
        with pytest.raises(smtplib.SMTPNotSupportedError, match="STARTTLS"):
            await mail.deliver(notice_to("grace@example.com"))
        assert box.mails == []
