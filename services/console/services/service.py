"""Queries for deployments and services."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httpx

from services.console.engine import EngineClient
from services.console.services.schemas import Deployment, Service, ServiceList

_HEALTH_TIMEOUT: Final = 2.0


async def list_services(engine: EngineClient) -> ServiceList:
    """Return all deployments and services."""
    deployments, services = await asyncio.gather(list_deployments(engine), engine.services())
    return ServiceList(deployments=deployments, services=[Service.model_validate(row) for row in services])


async def list_deployments(engine: EngineClient) -> list[Deployment]:
    """Return the deployments with their health."""
    rows = await engine.deployments()
    health = await asyncio.gather(*(_is_healthy(engine.http, str(row.get("uri", ""))) for row in rows))
    deployments = [
        Deployment(
            id=row["id"],
            uri=str(row.get("uri", "")),
            healthy=healthy,
            services=sorted(_names(row.get("services", []))),
        )
        for row, healthy in zip(rows, health, strict=True)
    ]
    return sorted(deployments, key=lambda one: one.services)


def _names(services: list[Any]) -> list[str]:
    return [str(service["name"] if isinstance(service, dict) else service) for service in services]


async def _is_healthy(http: httpx.AsyncClient, uri: str) -> bool:
    try:
        return (await http.get(f"{uri.rstrip('/')}/health", timeout=_HEALTH_TIMEOUT)).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
