"""The cookies of sessions and of known browsers."""

from __future__ import annotations

from fastapi import Response

from services.console.auth.devices import LIFETIME
from services.console.auth.sessions import SessionInfo
from services.console.settings import ConsoleSettings


def session_cookie_name(settings: ConsoleSettings) -> str:
    """Return the name of the session cookie. Browsers accept the HTTPS prefix only from this host and path."""
    return "__Host-perdure" if settings.is_https else "perdure-console"


def set_session_cookie(response: Response, settings: ConsoleSettings, token: str, session: SessionInfo) -> None:
    """Set the session cookie."""
    response.set_cookie(
        session_cookie_name(settings),
        token,
        max_age=round((session.ends_at - session.created_at).total_seconds()),
        path="/",
        secure=settings.is_https,
        httponly=True,
        samesite="lax",  # so that links in notifications find the session; changes need the CSRF token
    )


def clear_session_cookie(response: Response, settings: ConsoleSettings) -> None:
    """Delete the session cookie."""
    response.delete_cookie(
        session_cookie_name(settings), path="/", secure=settings.is_https, httponly=True, samesite="lax"
    )


def device_cookie_name(settings: ConsoleSettings) -> str:
    """Return the name of the device cookie, see `services.console.auth.devices`."""
    return "__Host-perdure-device" if settings.is_https else "perdure-console-device"


def set_device_cookie(response: Response, settings: ConsoleSettings, token: str) -> None:
    """Set the device cookie."""
    response.set_cookie(
        device_cookie_name(settings),
        token,
        max_age=round(LIFETIME.total_seconds()),
        path="/",
        secure=settings.is_https,
        httponly=True,
        samesite="strict",
    )
