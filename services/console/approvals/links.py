"""Routes for links in notifications. Opening a link only shows the approval; submitting the form votes."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse

from perdure.errors import Unauthenticated
from perdure.security import Link, read_link
from perdure.security.encodings import base64url_decode
from services.console.approvals import service
from services.console.approvals.schemas import Decision
from services.console.auth.access import check_same_origin
from services.console.auth.users import utc_now
from services.console.dependencies import ComponentsDep, ReasonField
from services.console.problems import ConsoleError
from services.console.rendering import page
from services.console.settings import ConsoleSettings

pages = APIRouter(prefix="/l")


def parse_link(token: str, settings: ConsoleSettings) -> tuple[Link, bool]:
    """Return the link of a token, and whether its signature is verified.

    The service verifies the signature in any case. The console does it to show the approval, which must stay hidden
    from the holder of a forged link.

    Raises:
        ConsoleError: The link is invalid, forged or expired.
    """
    try:
        if settings.link_public_keys:
            return read_link(token, settings.link_public_keys, now=utc_now()), True
        return _parse_unverified(token), False
    except Unauthenticated as error:
        raise ConsoleError(403, "link", error.message) from error


def _parse_unverified(token: str) -> Link:
    content, _, signature = token.partition(".")
    try:
        return Link.model_validate({**json.loads(base64url_decode(content)), "signature": signature})
    except (ValueError, TypeError, RecursionError) as error:
        raise Unauthenticated("invalid link; it may be truncated") from error


@pages.get("/{token}")
async def link_page(token: str, request: Request, components: ComponentsDep) -> HTMLResponse:
    """Show the approval of a link. A GET must not vote, since mail scanners open links."""
    link, is_verified = parse_link(token, components.settings)
    approval = None
    if is_verified:
        await service.check_rights(components.engine, link)
        approval = await service.get(components.engine, link.approval_id)
    if approval is not None and not approval.accepts_link(link):
        approval = None
    response = await page(
        request, None, "link.html", link=link, token=token, approval=approval, is_verified=is_verified, receipt=None
    )
    response.headers["referrer-policy"] = "no-referrer"
    return response


@pages.post("/{token}")
async def submit_decision(
    token: str,
    request: Request,
    components: ComponentsDep,
    decision: Annotated[Decision, Form()],
    reason: ReasonField = "",
) -> HTMLResponse:
    """Vote with a link."""
    check_same_origin(request)
    link, is_verified = parse_link(token, components.settings)
    receipt = await service.decide_by_link(components.engine, token, link.approval_id, decision, reason)
    response = await page(
        request, None, "link.html", link=link, token=token, approval=None, is_verified=is_verified, receipt=receipt
    )
    response.headers["referrer-policy"] = "no-referrer"
    return response
