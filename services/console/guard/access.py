"""Who may take a route. Each route names its role in one dependency, and nothing else decides it."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request

from services.console.guard.cookies import cookie_name
from services.console.parts import PartsOf
from services.console.people.roles import Role, may
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError

CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def check_same_origin(request: Request) -> None:
    """Refuse a change that another site's page asks for.

    Browsers say where a request comes from; programs, which carry no one else's cookies, say nothing.

    Args:
        request: The request.

    Raises:
        ConsoleError: It comes from another site.
    """
    if request.method in _SAFE:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:  # an older browser; it also hides the origin of a page that hides its referrer
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign:
        raise ConsoleError(403, "other_site", "this was asked for by a page of another site; nothing was done")


async def _signed_in(request: Request, found: PartsOf) -> SignedIn:
    check_same_origin(request)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    by_bearer = scheme.lower() == "bearer" and bool(bearer)
    token = bearer.strip() if by_bearer else request.cookies.get(cookie_name(found.settings))
    signed_in = await found.sessions.find(token, uses=not _is_by_itself(request)) if token else None
    if signed_in is None:
        raise ConsoleError(401, "sign_in", "sign in first; your session may have ended")
    if request.method not in _SAFE and not by_bearer:  # what a browser sends by itself proves no intent
        shown = request.headers.get(CSRF_HEADER)
        if shown is None and request.headers.get("content-type", "").startswith(_FORMS):
            field = (await request.form()).get(CSRF_FIELD)
            shown = field if isinstance(field, str) else None
        if shown is None or not hmac.compare_digest(shown.encode(), signed_in.csrf.encode()):
            raise ConsoleError(403, "csrf", "the form is out of date or forged; load the page again and repeat")
    return signed_in


def _is_by_itself(request: Request) -> bool:
    """Tell if an open page fetches that by itself, which keeps no session alive from which its person went away.

    A stream is opened again by the browser each time it was cut off.
    """
    is_stream = request.headers.get("accept") == "text/event-stream"
    return request.method in _SAFE and (is_stream or "hx-request" in request.headers)


def needs(role: Role) -> Callable[..., Awaitable[SignedIn]]:
    """Return the dependency of a route that needs a role.

    Args:
        role: The role.
    """

    async def check(signed_in: Annotated[SignedIn, Depends(_signed_in)]) -> SignedIn:
        if not may(signed_in.person.roles, role):
            raise ConsoleError(
                403,
                "role_needed",
                f"this needs the role '{role}'; {signed_in.person.name} has "
                f"{', '.join(sorted(signed_in.person.roles))}. An administrator can change that",
                role=role,
            )
        return signed_in

    check.needs_role = role  # type: ignore[attr-defined]  # read by `role_of_route`
    return check


def role_of_route(route: Any) -> Role | None:
    """Return the role that a route needs; None when anybody may take it.

    Args:
        route: A route of the application.
    """
    for dependency in route.dependant.dependencies:
        role: Role | None = getattr(dependency.call, "needs_role", None)
        if role is not None:
            return role
    return None


Viewer = Annotated[SignedIn, Depends(needs(Role.VIEWER))]
Approver = Annotated[SignedIn, Depends(needs(Role.APPROVER))]
Operator = Annotated[SignedIn, Depends(needs(Role.OPERATOR))]
Administrator = Annotated[SignedIn, Depends(needs(Role.ADMINISTRATOR))]
