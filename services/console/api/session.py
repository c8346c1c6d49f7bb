"""Signing in and out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.console.api.errors import OPEN, OWN, answers
from services.console.guard.access import Viewer, check_same_origin
from services.console.guard.addresses import client_address
from services.console.guard.cookies import clear_cookie, device_cookie_name, set_cookie
from services.console.parts import PartsOf
from services.console.people.persons import Person
from services.console.people.sessions import SessionInfo

router = APIRouter(prefix="/api", tags=["session"])


class Credentials(BaseModel):
    """Who wants to sign in."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=200)]
    password: Annotated[str, Field(max_length=200)]


class NewSession(BaseModel):
    """A session that began.

    Args:
        token: For programs: send it as ``Authorization: Bearer``. Browsers have it in a cookie that scripts can't read.
        csrf: For scripts in a browser: send it as ``X-CSRF-Token`` with each change.
        ends_at: When the session ends at the latest.
    """

    token: str
    csrf: str
    ends_at: datetime


class Me(BaseModel):
    """Who is signed in, and where."""

    person: Person
    sessions: list[SessionInfo]


class NewPassword(BaseModel):
    """Another password of one's own."""

    model_config = ConfigDict(extra="forbid")

    old: Annotated[str, Field(max_length=200)]
    new: Annotated[str, Field(max_length=200)]


@router.post("/session", status_code=201, responses={**OPEN, **answers(401, 429, 503)}, operation_id="sign_in")
async def sign_in(credentials: Credentials, request: Request, response: Response, found: PartsOf) -> NewSession:
    """Sign in."""
    check_same_origin(request)
    address = client_address(request, found.settings)
    device = request.cookies.get(device_cookie_name(found.settings))
    person = await found.sign_in.check(credentials.name, credentials.password, address=address, device=device)
    await found.devices.remember(person, address, device, browser=False)
    agent = request.headers.get("user-agent", "")
    token, info, csrf = await found.sessions.begin(person, address=address, agent=agent)
    set_cookie(response, found.settings, token, info)
    return NewSession(token=token, csrf=csrf, ends_at=info.ends_at)


@router.get("/session", responses=OWN, operation_id="me")
async def me(signed_in: Viewer, found: PartsOf) -> Me:
    """Say who is signed in, and where else."""
    return Me(person=signed_in.person, sessions=await found.sessions.of(signed_in))


@router.delete("/session", status_code=204, responses=OWN, operation_id="sign_out")
async def sign_out(signed_in: Viewer, response: Response, found: PartsOf) -> None:
    """End this session."""
    found.signer.forget(signed_in)
    await found.sessions.end(signed_in)
    clear_cookie(response, found.settings)


@router.delete("/sessions", status_code=204, responses=OWN, operation_id="sign_out_everywhere")
async def sign_out_everywhere(signed_in: Viewer, response: Response, found: PartsOf) -> None:
    """End all sessions of who is signed in."""
    found.signer.forget(signed_in)
    await found.sessions.end_all(signed_in.person.name)
    clear_cookie(response, found.settings)


@router.post("/password", status_code=204, responses=OWN, operation_id="change_password")
async def change_password(password: NewPassword, signed_in: Viewer, response: Response, found: PartsOf) -> None:
    """Change one's own password; it ends all sessions."""
    await found.sign_in.change_password(signed_in, password.old, password.new)
    clear_cookie(response, found.settings)
