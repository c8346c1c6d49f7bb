"""How much a request may carry."""

from __future__ import annotations

from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY: Final = 2 * 1024 * 1024


class BodyLimit:
    """Refuses a request with more than 2 MiB before it fills the memory; nobody needs to be signed in to send one.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > LARGEST_BODY:
            await _refuse(scope, receive, send)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > LARGEST_BODY:  # it announced less, or nothing: whoever sends that gets no more of an answer
                return {"type": "http.disconnect"}
            return message

        await self._app(scope, limited, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    problem = {"code": "too_large", "message": f"a request may carry {LARGEST_BODY // 1024 // 1024} MiB at most"}
    await JSONResponse(problem, status_code=413)(scope, receive, send)
