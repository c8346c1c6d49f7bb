"""The landing page of links in notifications: it shows, and only a person's click decides."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse

from perdure.errors import Unauthenticated
from perdure.security import Link, read_link
from perdure.security.encodings import base64url_decode
from services.console.guard.access import check_same_origin
from services.console.pages.approvals import ReasonText
from services.console.pages.render import page
from services.console.parts import PartsOf
from services.console.people.persons import utc_now
from services.console.problems import ConsoleError
from services.console.reads import approvals
from services.console.reads.approvals import Verdict
from services.console.settings import ConsoleSettings

router = APIRouter()


def about(token: str, settings: ConsoleSettings) -> tuple[Link, bool]:
    """Return what a link is about, and whether it was checked to be one of ours.

    The service checks it in any case when it decides. The console does it to show what is to be decided, which is
    nobody's business who only made a link up.

    Args:
        token: The link's token.
        settings: The keys of links.

    Raises:
        ConsoleError: It is no link, forged, or expired.
    """
    try:
        if settings.minters:
            return read_link(token, settings.minters, now=utc_now()), True
        return _unchecked(token), False
    except Unauthenticated as error:
        raise ConsoleError(403, "link", error.message) from error


def _unchecked(token: str) -> Link:
    content, _, signature = token.partition(".")
    try:
        return Link.model_validate({**json.loads(base64url_decode(content)), "signature": signature})
    except (ValueError, TypeError, RecursionError) as error:
        raise Unauthenticated("this is no link of ours: it may have been cut off") from error


@router.get("/l/{token}")
async def show_link(token: str, request: Request, found: PartsOf) -> HTMLResponse:
    """Show what a link is about. It decides nothing: what scans mail opens links too."""
    link, checked = about(token, found.settings)
    approval = None
    if checked:
        await approvals.check_rights(found.engine, link)
        approval = await approvals.one(found.engine, link.approval_id)
    if approval is not None and not approval.takes_link(link):
        approval = None  # decided, revoked, or not what the link was made for
    answer = await page(
        request, None, "link.html", link=link, token=token, approval=approval, checked=checked, decided=None
    )
    answer.headers["referrer-policy"] = "no-referrer"
    return answer


@router.post("/l/{token}")
async def decide_by_link(
    token: str, request: Request, found: PartsOf, verdict: Annotated[Verdict, Form()], reason: ReasonText = ""
) -> HTMLResponse:
    """Decide with a link."""
    check_same_origin(request)
    link, checked = about(token, found.settings)
    receipt = await approvals.decide_by_link(found.engine, token, link.approval_id, verdict, reason)
    answer = await page(
        request, None, "link.html", link=link, token=token, approval=None, checked=checked, decided=receipt
    )
    answer.headers["referrer-policy"] = "no-referrer"
    return answer
