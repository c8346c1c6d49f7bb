"""Alerts: what is wrong, at a glance and as server-sent events."""

from __future__ import annotations

from fastapi import APIRouter, Request
from sse_starlette import EventSourceResponse

from services.console.api.errors import ENGINE
from services.console.guard.access import Viewer
from services.console.live import Look
from services.console.live import watch as watched
from services.console.parts import EngineOf, PartsOf
from services.console.people.persons import utc_now
from services.console.reads import alerts
from services.console.reads.alerts import AlertsView

router = APIRouter(prefix="/api/alerts", tags=["alerts"], responses=ENGINE)


@router.get("", operation_id="list_alerts")
async def list_alerts(_: Viewer, engine: EngineOf) -> AlertsView:
    """List what is wrong, and what was; what could not be found out is null, and said in `problems`."""
    return await alerts.read(engine, utc_now())


@router.get(
    "/events",
    operation_id="watch_alerts",
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def watch(request: Request, signed_in: Viewer, found: PartsOf) -> EventSourceResponse:
    """Watch what is wrong: an event `alerts` with all of it at each change, until the session ends."""

    async def look() -> Look:
        return Look({"alerts": (await alerts.read(found.engine, utc_now())).model_dump_json()})

    return watched(request, found, signed_in, look)
