"""Persons, for administrators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from services.console.api.people import Name
from services.console.guard.access import Administrator
from services.console.pages.render import done, page
from services.console.pages.signin import Text
from services.console.parts import PartsOf
from services.console.people.roles import Role

router = APIRouter()

Roles = Annotated[list[Role], Form(max_length=len(Role))]
GroupsText = Annotated[str, Form(max_length=2000)]


@router.get("/people")
async def list_users(request: Request, signed_in: Administrator, found: PartsOf) -> HTMLResponse:
    """Show who may sign in, and what was done to persons."""
    people, acts = await found.persons.all(), await found.persons.acts(30)
    unsent = {each.person for each in await found.persons.unsent_rights()}
    return await page(request, signed_in, "people.html", people=people, acts=acts, roles=list(Role), unsent=unsent)


@router.post("/people")
async def add_user(
    request: Request,
    signed_in: Administrator,
    found: PartsOf,
    name: Text = "",
    password: Text = "",
    roles: Roles = [],  # noqa: B006 - FastAPI copies it
    groups: GroupsText = "",
) -> Response:
    """Add a person."""
    actor = signed_in.person.name
    person = await found.persons.add(name, password, roles, groups.split(","), by=actor)
    return await done(request, signed_in, f"{person.name} may sign in now", "/people")


@router.post("/people/{name}")
async def change_user(
    name: Name,
    request: Request,
    signed_in: Administrator,
    found: PartsOf,
    roles: Roles = [],  # noqa: B006 - FastAPI copies it
    groups: GroupsText = "",
    *,
    disabled: Annotated[bool, Form()] = False,
) -> Response:
    """Change what a person may do; it ends their sessions."""
    person = await found.persons.change(
        name, roles=roles, groups=groups.split(","), disabled=disabled, by=signed_in.person.name
    )
    return await done(request, signed_in, f"{person.name} was changed, and has to sign in again", "/people")


@router.post("/people/{name}/revoke-links")
async def revoke_links(name: Name, request: Request, signed_in: Administrator, found: PartsOf) -> Response:
    """End a person's links, delegations and key files."""
    await found.persons.revoke_links(name, by=signed_in.person.name)
    return await done(request, signed_in, f"Links and delegations of {name} from before no longer hold", "/people")


@router.post("/people/{name}/password")
async def set_password(
    name: Name, request: Request, signed_in: Administrator, found: PartsOf, password: Text = ""
) -> Response:
    """Give a person another password; it ends their sessions."""
    await found.persons.set_password(name, password, by=signed_in.person.name)
    return await done(request, signed_in, f"{name} has a new password", "/people")
