"""The session's cookie."""

from __future__ import annotations

from fastapi import Request, Response

from services.console.people.sessions import SessionInfo
from services.console.settings import ConsoleSettings


def cookie_name(settings: ConsoleSettings) -> str:
    """Return the name of the session's cookie. Over https, browsers take this prefix from no other host or path.

    Args:
        settings: How people reach the console.
    """
    return "__Host-perdure" if settings.is_https else "perdure-console"


def set_cookie(response: Response, settings: ConsoleSettings, token: str, session: SessionInfo) -> None:
    """Give a browser its session.

    Args:
        response: The answer.
        settings: How people reach the console.
        token: The session's token.
        session: The session.
    """
    response.set_cookie(
        cookie_name(settings),
        token,
        max_age=round((session.ends_at - session.created_at).total_seconds()),
        path="/",
        secure=settings.is_https,
        httponly=True,
        samesite="lax",  # links in notifications have to arrive signed in; what changes things is guarded besides
    )


def clear_cookie(response: Response, settings: ConsoleSettings) -> None:
    """Take the session from a browser.

    Args:
        response: The answer.
        settings: How people reach the console.
    """
    response.delete_cookie(cookie_name(settings), path="/", secure=settings.is_https, httponly=True, samesite="lax")


def client_address(request: Request, settings: ConsoleSettings) -> str:
    """Return where a request comes from: the connection's other end, or what a trusted proxy says.

    Args:
        request: The request.
        settings: Which proxies are trusted.
    """
    address = request.client.host if request.client else "unknown"
    if address not in settings.proxies:
        return address
    # Each proxy adds on the right what it saw, or in a line of its own; the first one from there that is no proxy of
    # ours is the client. All lines count: the first one alone may be the stranger's own.
    forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
    for each in reversed(forwarded.split(",")):
        if each.strip() and each.strip() not in settings.proxies:
            return each.strip()[:64]
    return address
