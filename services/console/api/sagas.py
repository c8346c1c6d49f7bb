"""Overview and sagas, and a saga's status as server-sent events."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from sse_starlette import EventSourceResponse

from perdure.saga.status import SagaPhase
from services.console.api.errors import ENGINE
from services.console.guard.access import Viewer
from services.console.live import watch_saga
from services.console.parts import EngineOf, PartsOf
from services.console.people.persons import utc_now
from services.console.reads import overview, sagas
from services.console.reads.overview import Overview
from services.console.reads.sagas import Saga, SagaPage

router = APIRouter(prefix="/api", tags=["sagas"], responses=ENGINE)

Search = Annotated[str, Query(max_length=200, description="Part of the key.")]
PageNumber = Annotated[int, Query(ge=1, le=1_000_000)]
ServiceName = Annotated[str | None, Query(max_length=200)]


@router.get("/overview", operation_id="overview")
async def show_overview(signed_in: Viewer, engine: EngineOf) -> Overview:
    """Tell what matters at a glance; what could not be found out is null, and said in `problems`."""
    return await overview.read(engine, signed_in, utc_now())


@router.get("/sagas", operation_id="list_sagas")
async def list_sagas(
    _: Viewer,
    engine: EngineOf,
    search: Search = "",
    phase: SagaPhase | None = None,
    service: ServiceName = None,
    page: PageNumber = 1,
) -> SagaPage:
    """List sagas, the newest first."""
    return await sagas.page(engine, search=search, phase=phase, service=service, number=page)


@router.get(
    "/sagas/{saga_id:path}/events",
    operation_id="watch_saga",
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def watch(
    saga_id: str, request: Request, signed_in: Viewer, found: PartsOf, service: ServiceName = None
) -> EventSourceResponse:
    """Watch a saga or another workflow: an event `status` with status and timeline at each change; `end` at the end.

    As long as the engine does not answer, what was sent may be old: `away` says why, and since when; `back` ends that.
    """
    await sagas.one(found.engine, saga_id, service)  # so that what is not there is answered, not streamed

    async def as_json(saga: Saga) -> dict[str, str]:
        return {"status": saga.model_dump_json()}

    return watch_saga(request, found, signed_in, saga_id, service=service, render=as_json)


@router.get("/sagas/{saga_id:path}", operation_id="show_saga")
async def show_saga(saga_id: str, _: Viewer, engine: EngineOf, service: ServiceName = None) -> Saga:
    """Show a saga: its status, and its timeline of steps and compensations."""
    return await sagas.one(engine, saga_id, service)
