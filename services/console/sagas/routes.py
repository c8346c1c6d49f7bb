"""Routes for sagas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from sse_starlette import EventSourceResponse

from perdure.saga.queries import ALL_PHASES, HISTORY, OPEN_PHASES
from perdure.saga.status import SagaPhase
from services.console.approvals.service import get_open
from services.console.auth.sessions import Session
from services.console.auth.users import utc_now
from services.console.dependencies import Components, ComponentsDep, EngineDep, PageNumber, PageQuery, Viewer
from services.console.events import EVENT_STREAM, Poll, digest, stream
from services.console.problems import ENGINE_ERRORS, ConsoleError
from services.console.rendering import fragment, page
from services.console.sagas import service
from services.console.sagas.chart import draw
from services.console.sagas.schemas import Saga, SagaPage

api = APIRouter(prefix="/api/sagas", tags=["sagas"], responses=ENGINE_ERRORS)
pages = APIRouter(prefix="/sagas")

Search = Annotated[str, Query(max_length=200, description="Part of the key.")]
ServiceName = Annotated[str | None, Query(max_length=200, alias="service")]
Days = Annotated[int, Query(ge=1, le=365, description="Only ended sagas that started within these days.")]


@api.get("", operation_id="list_sagas")
async def list_all(
    _: Viewer,
    engine: EngineDep,
    search: Search = "",
    phase: SagaPhase | None = None,
    service_name: ServiceName = None,
    days: Days = HISTORY.days,
    page: PageNumber = 1,
) -> SagaPage:
    """List sagas, newest first."""
    return await service.list_page(
        engine, search=search, phase=phase, service=service_name, since=timedelta(days=days), number=page
    )


@api.get(
    "/{saga_id:path}/events",
    operation_id="watch_saga",
    response_class=EventSourceResponse,
    responses=EVENT_STREAM,
)
async def watch(
    saga_id: str, request: Request, session: Viewer, components: ComponentsDep, service_name: ServiceName = None
) -> EventSourceResponse:
    """Stream a saga or another workflow: `status` with status and timeline per change, `end` at the end.

    While the engine does not respond, `unavailable` says why and since when; `available` follows.
    """
    await service.get(components.engine, saga_id, service_name)  # answers 404 instead of a stream

    async def render(saga: Saga) -> dict[str, str]:
        return {"status": saga.model_dump_json()}

    return _stream(request, components, session, saga_id, service_name, render)


@api.get("/{saga_id:path}", operation_id="show_saga")
async def show(saga_id: str, _: Viewer, engine: EngineDep, service_name: ServiceName = None) -> Saga:
    """Return a saga: its status, and its timeline of steps and compensations."""
    return await service.get(engine, saga_id, service_name)


@pages.get("")
async def list_page(
    request: Request,
    session: Viewer,
    engine: EngineDep,
    search: Search = "",
    phase: Annotated[str, Query(max_length=40)] = "",
    service_name: ServiceName = None,
    days: Days = HISTORY.days,
    number: PageQuery = 1,
) -> HTMLResponse:
    """Show sagas, newest first."""
    # A form sends an empty text for no choice.
    chosen: SagaPhase | None = next((known for known in ALL_PHASES if known == phase), None)
    listing = await service.list_page(
        engine, search=search, phase=chosen, service=service_name or None, since=timedelta(days=days), number=number
    )
    filters = {"search": search, "phase": chosen, "service": service_name, "days": days if days != HISTORY.days else 0}
    return await page(
        request,
        session,
        "sagas.html",
        listing=listing,
        phases=ALL_PHASES,
        filters={name: value for name, value in filters.items() if value},
        search=search,
        phase=chosen,
        days=days,
        is_open=chosen in OPEN_PHASES,
    )


@pages.get("/{saga_id:path}/events")
async def watch_page(
    saga_id: str,
    request: Request,
    session: Viewer,
    components: ComponentsDep,
    service_name: ServiceName = None,
    seen: Annotated[str, Query(max_length=200)] = "",
) -> EventSourceResponse:
    """Stream the parts of a saga's page that change."""
    try:
        await service.get(components.engine, saga_id, service_name)
    except ConsoleError as error:
        # During an outage of the engine, stream `unavailable`: a browser retries a rejected stream ever more slowly.
        if error.status < 500:
            raise

    async def render(saga: Saga) -> dict[str, str]:
        return await _parts(components, session, saga)

    return _stream(request, components, session, saga_id, service_name, render, seen.split("."))


@pages.get("/{saga_id:path}")
async def show_page(
    saga_id: str, request: Request, session: Viewer, components: ComponentsDep, service_name: ServiceName = None
) -> HTMLResponse:
    """Show a saga."""
    saga = await service.get(components.engine, saga_id, service_name)
    parts = await _parts(components, session, saga)
    seen = ".".join(map(digest, parts.values()))
    return await page(request, session, "saga.html", saga=saga, parts=parts, seen=seen)


async def _parts(components: Components, session: Session, saga: Saga) -> dict[str, str]:
    approval = None if saga.is_final else await get_open(components.engine, saga.timeline.key)
    chart = draw(saga.timeline, utc_now())
    return {
        "saga": fragment("_saga.html", saga=saga, chart=chart),
        "approval": fragment("_saga_approval.html", approval=approval, me=session.user, csrf=session.csrf, saga=saga),
    }


def _stream(
    request: Request,
    components: Components,
    session: Session,
    saga_id: str,
    service_name: str | None,
    render: Callable[[Saga], Awaitable[dict[str, str]]],
    seen: Iterable[str] = (),
) -> EventSourceResponse:
    async def poll() -> Poll:
        saga = await service.get(components.engine, saga_id, service_name)
        return Poll(await render(saga), saga.is_final)

    return stream(request, components, session, poll, seen=seen)
