"""From a template to an answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from services.console.pages.isolation import Isolation
from services.console.pages.picture import spoken
from services.console.parts import Parts, parts
from services.console.people.persons import utc_now
from services.console.people.roles import Role, may
from services.console.people.sessions import SignedIn

_FOLDER: Final = Path(__file__).parents[1] / "templates"

_environment: Final = Environment(
    loader=FileSystemLoader(_FOLDER),
    autoescape=select_autoescape(default=True, default_for_string=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Isolation],
)


def moment(at: datetime | None) -> str:
    """Return a moment as people read it, in UTC."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def machine(at: datetime) -> str:
    """Return a moment as programs read it."""
    return at.astimezone(UTC).isoformat()


def from_now(at: datetime | None) -> str:
    """Return how far a moment is away: ``3 min ago``, ``in 2 h``."""
    if at is None:
        return ""
    away = at - utc_now()
    words = spoken(_coarse(abs(away)))
    return f"in {words}" if away > timedelta(0) else f"{words} ago"


def minutes(duration: timedelta) -> str:
    """Return a duration as people read it, no finer than minutes: what is shown does not change at each look."""
    whole = int(max(0.0, duration.total_seconds()) // 60)
    return spoken(timedelta(minutes=whole)) if whole else "less than a minute"


def _coarse(duration: timedelta) -> timedelta:
    return timedelta(seconds=max(1, round(duration.total_seconds())))


def pretty(value: Any) -> str:
    """Return JSON as people read it."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def path_of(value: str) -> str:
    """Return an id as a part of a path; a slash in it stays one, since routes take the rest of the path."""
    return quote(value, safe="/")


def money(value: Any) -> str:
    """Return an amount of a payment in minor units as people read it; anything else as it is."""
    if isinstance(value, dict) and {"amount_minor", "currency"} <= value.keys():
        amount = value["amount_minor"]
        if isinstance(amount, int):
            return f"{amount // 100:,}.{amount % 100:02d} {value['currency']}"
    return ""


_environment.filters.update(
    moment=moment,
    machine=machine,
    from_now=from_now,
    pretty=pretty,
    path=path_of,
    query=urlencode,
    spoken=spoken,
    minutes=minutes,
    money=money,
)
_environment.globals.update(Role=Role, may=may)


def fragment(template: str, **context: Any) -> str:
    """Return a part of a page.

    Args:
        template: The template's file.
        **context: What it shows.
    """
    return _environment.get_template(template).render(**context)


async def page(
    request: Request, signed_in: SignedIn | None, template: str, *, status: int = 200, **context: Any
) -> HTMLResponse:
    """Return a page.

    Args:
        request: The request.
        signed_in: Who asks; None when nobody is signed in.
        template: The template's file.
        status: The HTTP status.
        **context: What it shows.
    """
    found: Parts = parts(request)
    notice = None
    # What a page fetches again by itself is not what a person loads next.
    if signed_in is not None and "hx-request" not in request.headers:
        notice = await found.sessions.take_notice(signed_in)
    html = fragment(
        template,
        me=None if signed_in is None else signed_in.person,
        csrf="" if signed_in is None else signed_in.csrf,
        notice=notice,
        path_now=request.url.path,
        alerts_open=None if signed_in is None else await found.badge.count(),
        **context,
    )
    return HTMLResponse(html, status_code=status)


async def done(request: Request, signed_in: SignedIn, notice: str, to: str) -> RedirectResponse:
    """Return to a page after a change, with a sentence about it.

    Args:
        request: The request.
        signed_in: Who acted.
        notice: The sentence.
        to: The page's path.
    """
    await parts(request).sessions.leave_notice(signed_in, notice)
    return RedirectResponse(to, status_code=303)
