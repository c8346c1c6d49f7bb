"""Delivery of notices by mail. Links are created when a mail is sent, and are not stored."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from dataclasses import dataclass, field
from datetime import timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import Final
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from perdure.approvals.links import LinkMinter
from perdure.approvals.notifications import ApprovalNotification
from perdure.errors import ConfigurationError

_PORTS: Final = {"smtp": 587, "smtps": 465}
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class MailServer:
    """An SMTP server.

    Args:
        host: Host name.
        port: Port.
        implicit_tls: Whether to use TLS from the start (``smtps``). Otherwise STARTTLS is required, except on loopback.
        user: User name; None for no authentication.
        password: Password.
    """

    host: str
    port: int
    implicit_tls: bool
    user: str | None = None
    password: SecretStr = field(default_factory=lambda: SecretStr(""))

    @classmethod
    def parse(cls, url: SecretStr) -> MailServer:
        """Parse the URL of a mail server.

        Args:
            url: ``smtp://user:password@host:587``, or ``smtps://``. A secret.

        Raises:
            ConfigurationError: The URL is invalid. The message does not quote it.
        """
        invalid = ConfigurationError(
            "PERDURE_NOTIFICATIONS_SMTP_URL is not the URL of a mail server: use smtp://user:password@host:587 "
            "or smtps://"
        )
        try:
            parts = urlsplit(url.get_secret_value())
            host, port = parts.hostname, parts.port
        except ValueError:
            raise invalid from None  # the error would show the password
        if not host or parts.scheme not in _PORTS:
            raise invalid
        return cls(
            host=host,
            port=port or _PORTS[parts.scheme],
            implicit_tls=parts.scheme == "smtps",
            user=unquote(parts.username) if parts.username else None,
            password=SecretStr(unquote(parts.password or "")),
        )


@dataclass(frozen=True)
class Mail:
    """Delivers notices to approvers by mail.

    Args:
        server: The mail server.
        sender: Address of the sender.
        minter: Creates links; None for mail without links.
        timeout: Timeout for answers of the server.
    """

    server: MailServer
    sender: str
    minter: LinkMinter | None = None
    timeout: timedelta = timedelta(seconds=20)

    def __post_init__(self) -> None:
        if not is_address(self.sender):
            raise ConfigurationError(f"PERDURE_NOTIFICATIONS_SMTP_FROM must be a mail address, not '{self.sender}'")

    async def deliver(self, notice: ApprovalNotification) -> bool:
        """Send a notice with a new link, and return False if the recipient is not a mail address.

        A repeated delivery of a notice has the same link and Message-ID, so mail programs can recognise duplicates.

        Args:
            notice: The notice.

        Raises:
            OSError: The mail server is unreachable or rejects the mail.
        """
        if not is_address(notice.to):
            return False
        await asyncio.to_thread(self._send, self._message(notice))
        return True

    def _message(self, notice: ApprovalNotification) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self.sender
        message["To"] = Address(addr_spec=notice.to)
        message["Subject"] = " ".join(notice.title.split())
        message["Date"] = format_datetime(notice.at)
        message["Message-ID"] = f"<{notice.key.replace(':', '.')}@{self.sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        link = None if self.minter is None else self.minter.link(notice)
        message.set_content(notice.text if link is None else f"{notice.text}\nDecide here: {link}")
        return message

    def _send(self, message: EmailMessage) -> None:
        server, seconds = self.server, self.timeout.total_seconds()
        tls = ssl.create_default_context()
        with (
            smtplib.SMTP_SSL(server.host, server.port, timeout=seconds, context=tls)
            if server.implicit_tls
            else smtplib.SMTP(server.host, server.port, timeout=seconds)
        ) as smtp:
            if not server.implicit_tls:
                smtp.ehlo()
                # Links and passwords must not cross a network in clear text.
                if smtp.has_extn("starttls") or server.host not in _LOOPBACK:
                    smtp.starttls(context=tls)
            if server.user is not None:
                smtp.login(server.user, server.password.get_secret_value())
            smtp.send_message(message)


def is_address(name: str) -> bool:
    """Return whether a name is a mail address.

    Args:
        name: Name of a user, a group, or ``anyone``.
    """
    if parseaddr(name)[1] != name or not name.isascii():
        return False
    local, at, domain = name.rpartition("@")
    try:
        return bool(local and at and domain) and Address(addr_spec=name).addr_spec == name
    except (ValueError, IndexError):
        return False
