"""Routes for the overview and alerts."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from sse_starlette import EventSourceResponse

from perdure.saga.queries import ALL_PHASES
from services.console.auth.sessions import Session
from services.console.auth.users import utc_now
from services.console.dependencies import Components, ComponentsDep, EngineDep, Viewer
from services.console.events import EVENT_STREAM, Poll, stream
from services.console.health import service
from services.console.health.schemas import AlertsView, Overview
from services.console.problems import ENGINE_ERRORS
from services.console.rendering import fragment, page

api = APIRouter(prefix="/api", tags=["health"], responses=ENGINE_ERRORS)
pages = APIRouter()


@api.get("/overview", operation_id="overview")
async def overview(session: Viewer, engine: EngineDep) -> Overview:
    """Return the state of the platform. A value that could not be read is null, with the cause in `problems`."""
    return await service.read_overview(engine, session, utc_now())


@api.get("/alerts", operation_id="list_alerts")
async def list_alerts(_: Viewer, engine: EngineDep) -> AlertsView:
    """List open and recent alerts. What could not be read is null, with the cause in `problems`."""
    return await service.read_alerts(engine, utc_now())


@api.get("/alerts/events", operation_id="watch_alerts", response_class=EventSourceResponse, responses=EVENT_STREAM)
async def watch_alerts(request: Request, session: Viewer, components: ComponentsDep) -> EventSourceResponse:
    """Stream alerts: an event `alerts` with all of them per change, until the session ends."""

    async def poll() -> Poll:
        alerts = await service.read_alerts(components.engine, utc_now())
        return Poll({"alerts": alerts.model_dump_json()})

    return stream(request, components, session, poll)


@pages.get("/")
async def overview_page(request: Request, session: Viewer, engine: EngineDep) -> HTMLResponse:
    """Show the state of the platform."""
    found = await service.read_overview(engine, session, utc_now())
    return await page(request, session, "overview.html", overview=found, phases=ALL_PHASES)


@pages.get("/alerts")
async def alerts_page(request: Request, session: Viewer, components: ComponentsDep) -> HTMLResponse:
    """Show open and recent alerts."""
    return await page(request, session, "alerts.html", parts=await _parts(components, session))


@pages.get("/alerts/events")
async def watch_alerts_page(request: Request, session: Viewer, components: ComponentsDep) -> EventSourceResponse:
    """Stream the parts of the alerts page that change."""

    # Sends everything first, even to a new page: a reconnecting page may show older data, and the page has no input
    # fields that a swap could clear.
    async def poll() -> Poll:
        return Poll(await _parts(components, session))

    return stream(request, components, session, poll)


@pages.get("/alerts/count")
async def count_fragment(_: Viewer, components: ComponentsDep) -> HTMLResponse:
    """Show the number of open alerts, for the navigation of an open page."""
    return HTMLResponse(fragment("_alert_count.html", alert_count=await components.alert_count.get()))


async def _parts(components: Components, session: Session) -> dict[str, str]:
    now = utc_now()
    context = {
        "alerts": await service.read_alerts(components.engine, now),
        "now": now,
        "me": session.user,
        "csrf": session.csrf,
        "runbooks": components.settings.runbooks_url,
    }
    return {name: fragment(f"_{name}.html", **context) for name in ("alerts_summary", "alerts")}
