"""Services: where they are deployed, whether they answer, and what they offer."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from pydantic import BaseModel

from services.console.engine import Engine

_ANSWERS_WITHIN = 2.0


class Handler(BaseModel):
    """One handler.

    Args:
        name: Its name.
        kind: ``exclusive``, ``shared`` or ``workflow``; None for a service without keys.
        public: Whether it can be called over the ingress.
        documentation: What it does.
    """

    name: str
    kind: str | None = None
    public: bool
    documentation: str | None = None


class ServiceView(BaseModel):
    """One service.

    Args:
        name: Its name.
        type: Service, virtual object or workflow.
        deployment_id: Where it runs.
        revision: Which revision the engine knows.
        public: Whether it can be called over the ingress.
        documentation: What it is for.
        handlers: Its handlers.
    """

    name: str
    type: str
    deployment_id: str
    revision: int
    public: bool
    documentation: str | None = None
    handlers: list[Handler]


class Deployment(BaseModel):
    """One deployment.

    Args:
        id: Its id.
        uri: Where the engine reaches it.
        healthy: Whether it answers from here.
        services: The services there.
    """

    id: str
    uri: str
    healthy: bool
    services: list[str]


class Services(BaseModel):
    """What is deployed."""

    deployments: list[Deployment]
    services: list[ServiceView]


async def read(engine: Engine) -> Services:
    """Return what is deployed.

    Args:
        engine: The engine.

    Raises:
        ConsoleError: The engine does not answer.
    """
    found, known = await asyncio.gather(deployments(engine), engine.services())
    return Services(deployments=found, services=sorted(map(_service, known), key=lambda each: each.name))


async def deployments(engine: Engine) -> list[Deployment]:
    """Return the deployments, and whether they answer.

    Args:
        engine: The engine.

    Raises:
        ConsoleError: The engine does not answer.
    """
    rows = await engine.deployments()
    answers = await asyncio.gather(*(_answers(engine.http, str(row.get("uri", ""))) for row in rows))
    found = [
        Deployment(
            id=row["id"],
            uri=str(row.get("uri", "")),
            healthy=answer,
            services=sorted(_names(row.get("services", []))),
        )
        for row, answer in zip(rows, answers, strict=True)
    ]
    return sorted(found, key=lambda each: each.services)


def _names(services: list[Any]) -> list[str]:
    return [str(each["name"] if isinstance(each, dict) else each) for each in services]


async def _answers(http: httpx.AsyncClient, uri: str) -> bool:
    try:
        return (await http.get(f"{uri.rstrip('/')}/health", timeout=_ANSWERS_WITHIN)).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _service(row: dict[str, Any]) -> ServiceView:
    handlers = [
        Handler(
            name=each["name"],
            kind=each.get("ty"),
            public=bool(each.get("public", True)),
            documentation=each.get("documentation"),
        )
        for each in row.get("handlers", [])
    ]
    return ServiceView(
        name=row["name"],
        type=str(row.get("ty", "")),
        deployment_id=str(row.get("deployment_id", "")),
        revision=int(row.get("revision", 0)),
        public=bool(row.get("public", True)),
        documentation=row.get("documentation"),
        handlers=sorted(handlers, key=lambda each: each.name),
    )
