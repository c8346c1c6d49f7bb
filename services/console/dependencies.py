"""The components of the console's process, and the FastAPI dependencies of its routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Form, Path, Query, Request

from perdure._runtime.plain_text import Reason
from services.console.alert_count import AlertCount
from services.console.auth.access import authenticate, check_role
from services.console.auth.api_keys import ApiKeys
from services.console.auth.devices import Devices
from services.console.auth.roles import Role
from services.console.auth.sessions import Session, Sessions
from services.console.auth.sign_in import SignIn
from services.console.auth.users import Users
from services.console.database import Database
from services.console.engine import EngineClient
from services.console.settings import ConsoleSettings
from services.console.signing import Signer
from services.console.stream_limits import StreamLimits


@dataclass(frozen=True)
class Components:
    """The components of the process, in ``app.state.components``."""

    settings: ConsoleSettings
    engine: EngineClient
    database: Database
    users: Users
    sessions: Sessions
    sign_in: SignIn
    signer: Signer
    api_keys: ApiKeys
    alert_count: AlertCount
    devices: Devices
    stream_limits: StreamLimits


def components_of(request: Request) -> Components:
    """Return the components of the application that handles a request."""
    return cast("Components", request.app.state.components)


ComponentsDep = Annotated[Components, Depends(components_of)]


def _engine(components: ComponentsDep) -> EngineClient:
    return components.engine


EngineDep = Annotated[EngineClient, Depends(_engine)]


async def _session(request: Request, components: ComponentsDep) -> Session:
    return await authenticate(request, components.sessions, components.settings)


def require(role: Role) -> Callable[..., Awaitable[Session]]:
    """Return the dependency of a route that requires a role."""

    async def check(session: Annotated[Session, Depends(_session)]) -> Session:
        check_role(session, role)
        return session

    check.required_role = role  # type: ignore[attr-defined]  # read by `role_of_route`
    return check


def role_of_route(route: Any) -> Role | None:
    """Return the role that a route requires; None for a public route."""
    for dependency in route.dependant.dependencies:
        role: Role | None = getattr(dependency.call, "required_role", None)
        if role is not None:
            return role
    return None


Viewer = Annotated[Session, Depends(require(Role.VIEWER))]
Approver = Annotated[Session, Depends(require(Role.APPROVER))]
Operator = Annotated[Session, Depends(require(Role.OPERATOR))]
Administrator = Annotated[Session, Depends(require(Role.ADMINISTRATOR))]

PageNumber = Annotated[int, Query(ge=1, le=1_000_000)]
PageQuery = Annotated[PageNumber, Query(alias="page")]
ReasonField = Annotated[Reason, Form()]
TextField = Annotated[str, Form(max_length=200)]
UserName = Annotated[str, Path(max_length=200)]
