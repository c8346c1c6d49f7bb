"""Persons, for administrators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from services.console.api.errors import OWN
from services.console.guard.access import Administrator
from services.console.parts import PartsOf
from services.console.people.persons import Person, UserAction
from services.console.people.roles import Role

router = APIRouter(prefix="/api/people", tags=["people"], responses=OWN)

Name = Annotated[str, Path(max_length=200)]
Password = Annotated[str, Field(max_length=200)]
Groups = Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=50)]


class NewUser(BaseModel):
    """A person to add."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    password: Password
    roles: Annotated[list[Role], Field(min_length=1, max_length=len(Role))]
    groups: Groups = []


class UserChange(BaseModel):
    """What to change of a person; null keeps it. It ends their sessions."""

    model_config = ConfigDict(extra="forbid")

    roles: Annotated[list[Role], Field(min_length=1, max_length=len(Role))] | None = None
    groups: Groups | None = None
    disabled: bool | None = None


class PasswordChange(BaseModel):
    """A person's password from now on."""

    model_config = ConfigDict(extra="forbid")

    password: Password


@router.get("", operation_id="list_users")
async def list_users(_: Administrator, found: PartsOf) -> list[Person]:
    """List who may sign in."""
    return await found.persons.all()


@router.get("/acts", operation_id="list_people_acts")
async def list_actions(_: Administrator, found: PartsOf) -> list[UserAction]:
    """List what was done to persons, the newest first."""
    return await found.persons.acts()


@router.post("", status_code=201, operation_id="add_user")
async def add_user(new: NewUser, signed_in: Administrator, found: PartsOf) -> Person:
    """Add a person."""
    return await found.persons.add(new.name, new.password, new.roles, new.groups, by=signed_in.person.name)


@router.patch("/{name}", operation_id="change_user")
async def change_user(name: Name, change: UserChange, signed_in: Administrator, found: PartsOf) -> Person:
    """Change a person's roles or groups, or whether they may sign in; it ends sessions, links and delegations."""
    return await found.persons.change(
        name, roles=change.roles, groups=change.groups, disabled=change.disabled, by=signed_in.person.name
    )


@router.post("/{name}/revoke-links", status_code=204, operation_id="revoke_links_of")
async def revoke_links(name: Name, signed_in: Administrator, found: PartsOf) -> None:
    """End the links, delegations and key files that a person has now; roles and sessions stay."""
    await found.persons.revoke_links(name, by=signed_in.person.name)


@router.post("/{name}/password", status_code=204, operation_id="set_password")
async def set_password(name: Name, given: PasswordChange, signed_in: Administrator, found: PartsOf) -> None:
    """Give a person another password; it ends their sessions."""
    await found.persons.set_password(name, given.password, by=signed_in.person.name)


@router.delete("/{name}/sessions", status_code=204, operation_id="end_sessions")
async def end_sessions(name: Name, _: Administrator, found: PartsOf) -> None:
    """End all sessions of a person."""
    person = await found.persons.get(name)
    await found.sessions.end_all(person.name)
