"""Messages of the services API."""

from __future__ import annotations

from pydantic import BaseModel


class Handler(BaseModel):
    """A handler.

    Args:
        name: Its name.
        kind: ``exclusive``, ``shared`` or ``workflow``; None for a service without keys.
        public: Whether the ingress accepts calls.
        documentation: Its documentation.
    """

    name: str
    kind: str | None = None
    public: bool
    documentation: str | None = None


class Service(BaseModel):
    """A service, virtual object or workflow."""

    name: str
    type: str
    deployment_id: str
    revision: int
    public: bool
    documentation: str | None = None
    handlers: list[Handler]


class Deployment(BaseModel):
    """A deployment; `healthy` tells whether it responds to the console."""

    id: str
    uri: str
    healthy: bool
    services: list[str]


class ServiceList(BaseModel):
    """All deployments and services."""

    deployments: list[Deployment]
    services: list[Service]
