"""What is wrong, live; and the count of it that every page shows."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from sse_starlette import EventSourceResponse

from services.console.guard.access import Viewer
from services.console.live import Look
from services.console.live import watch as watched
from services.console.pages.render import fragment, page
from services.console.parts import Parts, PartsOf
from services.console.people.persons import utc_now
from services.console.people.sessions import SignedIn
from services.console.reads import alerts

router = APIRouter()


@router.get("/alerts")
async def show_alerts(request: Request, signed_in: Viewer, found: PartsOf) -> HTMLResponse:
    """Show what is wrong, and what was."""
    return await page(request, signed_in, "alerts.html", live=await _parts(found, signed_in))


@router.get("/alerts/live")
async def watch(request: Request, signed_in: Viewer, found: PartsOf) -> EventSourceResponse:
    """Stream the parts of the page that change."""

    # All of it is sent at first, also to a page that is fresh: one that was cut off for a while may show what it was
    # sent in between, and there is nothing on it that somebody types.
    async def look() -> Look:
        return Look(await _parts(found, signed_in))

    return watched(request, found, signed_in, look)


@router.get("/alerts/count")
async def count(_: Viewer, found: PartsOf) -> HTMLResponse:
    """Show how many alerts are open, in the navigation of a page that stays."""
    return HTMLResponse(fragment("_alert_count.html", alerts_open=await found.badge.count()))


async def _parts(found: Parts, signed_in: SignedIn) -> dict[str, str]:
    now = utc_now()
    seen = await alerts.read(found.engine, now)
    context = {
        "found": seen,
        "now": now,
        "me": signed_in.person,
        "csrf": signed_in.csrf,
        "runbooks": found.settings.runbooks_url,
    }
    return {name: fragment(f"_{name}.html", **context) for name in ("alerts_summary", "alerts")}
