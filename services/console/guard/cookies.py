"""The cookies: a session's, and that of a known browser."""

from __future__ import annotations

from fastapi import Response

from services.console.people.devices import LIFETIME
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


def device_cookie_name(settings: ConsoleSettings) -> str:
    """Return the name of the cookie by which a browser is known again, see `services.console.people.devices`.

    Args:
        settings: How people reach the console.
    """
    return "__Host-perdure-device" if settings.is_https else "perdure-console-device"


def set_device_cookie(response: Response, settings: ConsoleSettings, token: str) -> None:
    """Give a browser its token as a known device.

    Args:
        response: The answer.
        settings: How people reach the console.
        token: The token.
    """
    response.set_cookie(
        device_cookie_name(settings),
        token,
        max_age=round(LIFETIME.total_seconds()),
        path="/",
        secure=settings.is_https,
        httponly=True,
        samesite="strict",
    )
