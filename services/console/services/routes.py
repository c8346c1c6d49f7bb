"""Routes for deployments and services."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from services.console.dependencies import EngineDep, Viewer
from services.console.problems import ENGINE_ERRORS
from services.console.rendering import page
from services.console.services import service
from services.console.services.schemas import ServiceList

api = APIRouter(prefix="/api/services", tags=["services"], responses=ENGINE_ERRORS)
pages = APIRouter(prefix="/services")


@api.get("", operation_id="list_services")
async def list_all(_: Viewer, engine: EngineDep) -> ServiceList:
    """List deployments, services and their handlers."""
    return await service.list_services(engine)


@pages.get("")
async def list_page(request: Request, session: Viewer, engine: EngineDep) -> HTMLResponse:
    """Show deployments, services and their handlers."""
    return await page(request, session, "services.html", listing=await service.list_services(engine))
