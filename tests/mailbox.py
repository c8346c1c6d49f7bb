"""A local mail server that stores received mail; it implements the part of SMTP (RFC 5321) that clients need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default


@dataclass
class Mailbox:
    """Received mail.

    Args:
        host: Address of the server.
        port: Port of the server.
        refusals: Number of further mails that the server refuses temporarily.
    """

    host: str
    port: int
    refusals: int = 0
    mails: list[EmailMessage] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"smtp://{self.host}:{self.port}"

    def to(self, address: str) -> list[EmailMessage]:
        return [mail for mail in self.mails if mail["To"] == address]


@asynccontextmanager
async def mailbox(host: str = "127.0.0.1") -> AsyncIterator[Mailbox]:
    """Run the server inside the context."""
    box = Mailbox(host, 0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _talk(box, reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(talk, host)
    box.port = server.sockets[0].getsockname()[1]
    async with server:
        yield box


async def _talk(box: Mailbox, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    def say(text: str) -> None:
        writer.write(f"{text}\r\n".encode())

    say("220 mailbox")
    while line := await reader.readline():
        command = line.split()[0].upper() if line.split() else b""
        if command == b"DATA":
            say("354 go on")
            content = await reader.readuntil(b"\r\n.\r\n")
            if box.refusals:
                box.refusals -= 1
                say("451 try again later")
                continue
            mail = message_from_bytes(content.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n."), policy=default)
            assert isinstance(mail, EmailMessage)
            box.mails.append(mail)
            say("250 taken")
        elif command == b"QUIT":
            say("221 bye")
            return
        else:
            say("250 ok")
