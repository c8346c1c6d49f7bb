"""Access checks of a request: origin, session, CSRF token and role."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from fastapi import Request

from services.console.auth.cookies import session_cookie_name
from services.console.auth.roles import Role, is_permitted
from services.console.auth.sessions import Session, Sessions
from services.console.problems import ConsoleError
from services.console.settings import ConsoleSettings

CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def check_same_origin(request: Request) -> None:
    """Reject a change from another site's page. Programs send no origin, and carry no foreign cookies.

    Raises:
        ConsoleError: The request comes from another site.
    """
    if request.method in _SAFE:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        is_foreign = site not in ("same-origin", "none")
    else:  # an older browser, which also hides the origin of a page without referrer
        is_foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if is_foreign:
        raise ConsoleError(403, "other_site", "request from a page of another site rejected")


async def authenticate(request: Request, sessions: Sessions, settings: ConsoleSettings) -> Session:
    """Return the session of a request, by its bearer token or cookie.

    Raises:
        ConsoleError: There is no active session (401), or the request is forged (403).
    """
    check_same_origin(request)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    has_bearer = scheme.lower() == "bearer" and bool(bearer)
    token = bearer.strip() if has_bearer else request.cookies.get(session_cookie_name(settings))
    session = await sessions.find(token, touch=not _is_refresh(request)) if token else None
    if session is None:
        raise ConsoleError(401, "sign_in", "sign in first; your session may have ended")
    if request.method not in _SAFE and not has_bearer:  # browsers send cookies with forged requests too
        csrf = request.headers.get(CSRF_HEADER)
        if csrf is None and request.headers.get("content-type", "").startswith(_FORMS):
            field = (await request.form()).get(CSRF_FIELD)
            csrf = field if isinstance(field, str) else None
        if csrf is None or not hmac.compare_digest(csrf.encode(), session.csrf.encode()):
            raise ConsoleError(403, "csrf", "the form has expired; reload the page and repeat the action")
    return session


def _is_refresh(request: Request) -> bool:
    """Return whether an open page refreshes itself, which must not keep an unattended session alive."""
    is_stream = request.headers.get("accept") == "text/event-stream"
    return request.method in _SAFE and (is_stream or "hx-request" in request.headers)


def check_role(session: Session, role: Role) -> None:
    """Reject a user without a role.

    Raises:
        ConsoleError: The role is missing (403).
    """
    if not is_permitted(session.user.roles, role):
        raise ConsoleError(
            403,
            "role_needed",
            f"requires role '{role}'; {session.user.name} has {', '.join(sorted(session.user.roles))}. "
            "An administrator can grant it",
            role=role,
        )
