"""Messages of the services API."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, Field

T = TypeVar("T", bound=Any)


def _by_name(items: list[T]) -> list[T]:
    return sorted(items, key=lambda item: item.name)


class Handler(BaseModel):
    """A handler, as the engine describes it.

    Args:
        name: Its name.
        kind: ``exclusive``, ``shared`` or ``workflow``; None for a service without keys.
        public: Whether the ingress accepts calls.
        documentation: Its documentation.
    """

    name: str
    kind: str | None = Field(default=None, validation_alias="ty")
    public: bool = True
    documentation: str | None = None


class Service(BaseModel):
    """A service, virtual object or workflow, as the engine describes it."""

    name: str
    type: str = Field(default="", validation_alias="ty")
    deployment_id: str = ""
    revision: int = 0
    public: bool = True
    documentation: str | None = None
    handlers: Annotated[list[Handler], AfterValidator(_by_name)] = []


class Deployment(BaseModel):
    """A deployment; `healthy` tells whether it responds to the console."""

    id: str
    uri: str
    healthy: bool
    services: list[str]


class ServiceList(BaseModel):
    """All deployments and services."""

    deployments: list[Deployment]
    services: Annotated[list[Service], AfterValidator(_by_name)]
