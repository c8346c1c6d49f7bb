"""Mail: how a notice leaves the platform. A link that decides is minted here, as the mail is handed over."""

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
    """Where mail is handed over.

    Args:
        host: The server's name.
        port: Its port.
        implicit_tls: TLS from the first byte (``smtps``); else STARTTLS, which only a server of this machine may lack.
        user: The name to sign in with; None for none.
        password: Its password.
    """

    host: str
    port: int
    implicit_tls: bool
    user: str | None = None
    password: SecretStr = field(default_factory=lambda: SecretStr(""))

    @classmethod
    def parse(cls, url: SecretStr) -> MailServer:
        """Return the server of a URL.

        Args:
            url: ``smtp://user:password@host:587``, or ``smtps://``. A secret.

        Raises:
            ConfigurationError: It is no such URL. The message holds nothing of it.
        """
        unfit = ConfigurationError(
            "PERDURE_NOTIFICATIONS_SMTP_URL is no address of a mail server: write smtp://user:password@host:587, "
            "or smtps://"
        )
        try:
            parts = urlsplit(url.get_secret_value())
            host, port = parts.hostname, parts.port
        except ValueError:
            raise unfit from None  # the error would show the password
        if not host or parts.scheme not in _PORTS:
            raise unfit
        return cls(
            host=host,
            port=port or _PORTS[parts.scheme],
            implicit_tls=parts.scheme == "smtps",
            user=unquote(parts.username) if parts.username else None,
            password=SecretStr(unquote(parts.password or "")),
        )


@dataclass(frozen=True)
class Mail:
    """Sends approvers their notices.

    Args:
        server: Where mail is handed over.
        sender: The address that it comes from.
        minter: Mints the links; None for mail without links.
        timeout: How long the server may take for an answer.
    """

    server: MailServer
    sender: str
    minter: LinkMinter | None = None
    timeout: timedelta = timedelta(seconds=20)

    def __post_init__(self) -> None:
        if not is_address(self.sender):
            raise ConfigurationError(
                f"PERDURE_NOTIFICATIONS_SMTP_FROM is no mail address: '{self.sender}'; mail needs a sender"
            )

    async def deliver(self, notice: ApprovalNotification) -> bool:
        """Send a notice, with a link that exists from now on and is kept nowhere.

        The same notice has the same link and the same Message-ID, so a notice that is sent twice is one mail for
        programs that compare those.

        Args:
            notice: The notice.

        Returns:
            False when the recipient has no mail address, as a group.

        Raises:
            OSError: The mail server can't be reached, or does not take the mail.
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
                # A link decides, and so does a password: neither goes over a network in clear.
                if smtp.has_extn("starttls") or server.host not in _LOOPBACK:
                    smtp.starttls(context=tls)
            if server.user is not None:
                smtp.login(server.user, server.password.get_secret_value())
            smtp.send_message(message)


def is_address(name: str) -> bool:
    """Tell if a name is a mail address that a message can be sent to.

    Args:
        name: A person's name, a group, or ``anyone``.
    """
    if parseaddr(name)[1] != name or not name.isascii():
        return False
    local, at, domain = name.rpartition("@")
    try:
        return bool(local and at and domain) and Address(addr_spec=name).addr_spec == name
    except (ValueError, IndexError):
        return False
