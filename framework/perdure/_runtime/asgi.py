"""The little of ASGI that perdure speaks itself."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = [
    "ASGIApp",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "is_final_body",
    "respond",
    "respond_json",
    "sending_status_at_once",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


async def respond(send: Send, status: int, body: bytes, content_type: str) -> None:
    """Send a whole response.

    Args:
        send: The request's ``send``.
        status: HTTP status.
        body: What to send.
        content_type: What it is.
    """
    headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def respond_json(send: Send, status: int, body: object) -> None:
    """Send a whole JSON response.

    Args:
        send: The request's ``send``.
        status: HTTP status.
        body: What to send.
    """
    await respond(send, status, json.dumps(body).encode(), "application/json")


def is_final_body(message: Message) -> bool:
    """Tell if a message is the end of a response."""
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def sending_status_at_once(send: Send) -> Send:
    """Wrap a ``send`` so that a status other than 200 leaves before the body does.

    granian sends the headers with the first chunk of the body. The SDK answers 401 and 404 by a start, and reads the
    request to its end before it sends any body, while the engine waits for the status before it ends the request: both
    would wait until the engine's inactivity timeout.

    Args:
        send: The request's ``send``.
    """

    async def start_and_flush(message: Message) -> None:
        await send(message)
        await send({"type": "http.response.body", "body": b"", "more_body": True})

    def wrapped(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start" and message["status"] != 200:
            return start_and_flush(message)
        return send(message)

    return wrapped
