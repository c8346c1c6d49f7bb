"""ASGI types and responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


async def respond(send: Send, status: int, body: bytes, content_type: str) -> None:
    """Send a complete response."""
    headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def respond_json(send: Send, status: int, body: object) -> None:
    """Send a complete JSON response."""
    await respond(send, status, json.dumps(body).encode(), "application/json")


async def read_remaining(receive: Receive, *, seconds: float, max_bytes: int) -> bool:
    """Read the rest of a request after its response, and return False if it did not end in time."""
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while size < max_bytes:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    break
    except TimeoutError:
        return False
    return True


def is_final_body(message: Message) -> bool:
    """Return whether a message ends a response."""
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def sending_status_at_once(send: Send) -> Send:
    """Wrap a ``send`` so that a status other than 200 is sent before the body.

    granian sends the headers with the first chunk of the body. For a 401 or 404, the SDK sends no body before the
    request ends, and the engine does not end the request before it has the status: a deadlock until the engine's
    inactivity timeout.
    """

    async def start_and_flush(message: Message) -> None:
        await send(message)
        await send({"type": "http.response.body", "body": b"", "more_body": True})

    def wrapped(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start" and message["status"] != 200:
            return start_and_flush(message)
        return send(message)

    return wrapped
