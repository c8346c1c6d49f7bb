"""Rendering of templates to responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from services.console import formatting
from services.console.auth.roles import Role, is_permitted
from services.console.auth.sessions import Session
from services.console.dependencies import components_of
from services.console.text_isolation import Isolation

_PACKAGE: Final = Path(__file__).parent

_environment: Final = Environment(
    loader=FileSystemLoader([_PACKAGE / "templates", *sorted(_PACKAGE.glob("*/templates"))]),
    autoescape=select_autoescape(default=True, default_for_string=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Isolation],
)
_environment.filters.update(
    timestamp=formatting.timestamp,
    iso=formatting.iso,
    relative=formatting.relative,
    duration=formatting.format_duration,
    minutes=formatting.format_minutes,
    sentence=formatting.sentence,
    pretty=formatting.pretty,
    path=formatting.quote_path,
    query=urlencode,
    money=formatting.money,
)
_environment.globals.update(Role=Role, is_permitted=is_permitted)


def fragment(template: str, **context: Any) -> str:
    """Render a part of a page."""
    return _environment.get_template(template).render(**context)


async def page(
    request: Request, session: Session | None, template: str, *, status: int = 200, **context: Any
) -> HTMLResponse:
    """Render a page; `session` is None for a page without authentication."""
    components = components_of(request)
    notice = None
    # The refresh of an open page must not consume the notice, which is for the next page that the user loads.
    if session is not None and "hx-request" not in request.headers:
        notice = await components.sessions.pop_notice(session)
    html = fragment(
        template,
        me=None if session is None else session.user,
        csrf="" if session is None else session.csrf,
        notice=notice,
        current_path=request.url.path,
        alert_count=None if session is None else await components.alert_count.get(),
        **context,
    )
    return HTMLResponse(html, status_code=status)


async def redirect(request: Request, session: Session, path: str, notice: str) -> RedirectResponse:
    """Redirect to a page after a change, which then shows a notice."""
    await components_of(request).sessions.set_notice(session, notice)
    return RedirectResponse(path, status_code=303)
