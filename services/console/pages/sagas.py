"""Overview, the list of sagas, and one saga, live."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from sse_starlette import EventSourceResponse

from perdure.saga.queries import ALL_PHASES
from perdure.saga.status import SagaPhase
from services.console.api.sagas import PageNumber, Search, ServiceName
from services.console.guard.access import Viewer
from services.console.live import digest, watch_saga
from services.console.pages.picture import draw
from services.console.pages.render import fragment, page
from services.console.parts import EngineOf, PartsOf
from services.console.people.persons import utc_now
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError
from services.console.reads import approvals, overview, sagas
from services.console.reads.sagas import Saga

router = APIRouter()


@router.get("/")
async def show_overview(request: Request, signed_in: Viewer, engine: EngineOf) -> HTMLResponse:
    """Show what matters at a glance."""
    now = utc_now()
    found = await overview.read(engine, signed_in, now)
    return await page(request, signed_in, "overview.html", found=found, phases=ALL_PHASES, now=now)


@router.get("/sagas")
async def list_sagas(
    request: Request,
    signed_in: Viewer,
    engine: EngineOf,
    search: Search = "",
    phase: Annotated[str, Query(max_length=40)] = "",
    service: ServiceName = None,
    number: Annotated[PageNumber, Query(alias="page")] = 1,
) -> HTMLResponse:
    """List sagas, the newest first."""
    # Of a form, where no choice is an empty one.
    chosen: SagaPhase | None = next((each for each in ALL_PHASES if each == phase), None)
    found = await sagas.page(engine, search=search, phase=chosen, service=service or None, number=number)
    filters = {name: value for name, value in (("search", search), ("phase", chosen), ("service", service)) if value}
    return await page(
        request, signed_in, "sagas.html", found=found, phases=ALL_PHASES, filters=filters, search=search, phase=chosen
    )


@router.get("/sagas/{saga_id:path}/live")
async def watch(
    saga_id: str,
    request: Request,
    signed_in: Viewer,
    found: PartsOf,
    service: ServiceName = None,
    seen: Annotated[str, Query(max_length=200)] = "",
) -> EventSourceResponse:
    """Stream the parts of a saga's page that change."""
    try:
        await sagas.one(found.engine, saga_id, service)
    except ConsoleError as error:
        # What is not there is answered, not streamed. But a browser whose stream is refused asks again after ever
        # longer whiles: without an engine it is told so, and told at once when there is one.
        if error.status < 500:
            raise

    async def as_html(saga: Saga) -> dict[str, str]:
        return await _parts(found, signed_in, saga)

    return watch_saga(request, found, signed_in, saga_id, service=service, render=as_html, seen=seen.split("."))


@router.get("/sagas/{saga_id:path}")
async def show_saga(
    saga_id: str, request: Request, signed_in: Viewer, found: PartsOf, service: ServiceName = None
) -> HTMLResponse:
    """Show a saga."""
    saga = await sagas.one(found.engine, saga_id, service)
    live = await _parts(found, signed_in, saga)
    seen = ".".join(map(digest, live.values()))
    return await page(request, signed_in, "saga.html", saga=saga, live=live, seen=seen)


async def _parts(found: PartsOf, signed_in: SignedIn, saga: Saga) -> dict[str, str]:
    waiting = None if saga.is_over else await approvals.open_one(found.engine, saga.timeline.key)
    picture = draw(saga.timeline, utc_now())
    return {
        "saga": fragment("_saga.html", saga=saga, picture=picture),
        "approval": fragment(
            "_saga_approval.html", approval=waiting, me=signed_in.person, csrf=signed_in.csrf, saga=saga
        ),
    }
