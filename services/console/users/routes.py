"""Routes for users."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response

from services.console.auth.roles import Role
from services.console.auth.users import User, UserAction
from services.console.dependencies import Administrator, ComponentsDep, TextField, UserName
from services.console.problems import DATABASE_ERRORS
from services.console.rendering import page, redirect
from services.console.users.schemas import NewPassword, NewUser, UserChange

api = APIRouter(prefix="/api/users", tags=["users"], responses=DATABASE_ERRORS)
pages = APIRouter(prefix="/users")

RolesField = Annotated[list[Role], Form(max_length=len(Role))]
GroupsField = Annotated[str, Form(max_length=2000)]


@api.get("", operation_id="list_users")
async def list_all(_: Administrator, components: ComponentsDep) -> list[User]:
    """List users."""
    return await components.users.all()


@api.get("/actions", operation_id="list_user_actions")
async def list_actions(_: Administrator, components: ComponentsDep) -> list[UserAction]:
    """List the latest actions on users, API keys and invocations, newest first."""
    return await components.users.actions()


@api.post("", status_code=201, operation_id="add_user")
async def add(new: NewUser, session: Administrator, components: ComponentsDep) -> User:
    """Add a user."""
    return await components.users.add(new.name, new.password, new.roles, new.groups, by=session.user.name)


@api.patch("/{name}", operation_id="change_user")
async def change(name: UserName, changes: UserChange, session: Administrator, components: ComponentsDep) -> User:
    """Change a user's roles or groups, or disable the user. Ends sessions, links and delegations."""
    return await components.users.change(
        name, roles=changes.roles, groups=changes.groups, disabled=changes.disabled, by=session.user.name
    )


@api.post("/{name}/revoke-links", status_code=204, operation_id="revoke_user_links")
async def revoke_links(name: UserName, session: Administrator, components: ComponentsDep) -> None:
    """Revoke a user's current links, delegations and key files. Roles and sessions stay."""
    await components.users.revoke_links(name, by=session.user.name)


@api.post("/{name}/password", status_code=204, operation_id="set_password")
async def set_password(name: UserName, new: NewPassword, session: Administrator, components: ComponentsDep) -> None:
    """Set a user's password, which ends the user's sessions."""
    await components.users.set_password(name, new.password, by=session.user.name)


@api.delete("/{name}/sessions", status_code=204, operation_id="end_sessions")
async def end_sessions(name: UserName, _: Administrator, components: ComponentsDep) -> None:
    """End all sessions of a user."""
    user = await components.users.get(name)
    await components.sessions.end_all(user.name)


@pages.get("")
async def list_page(request: Request, session: Administrator, components: ComponentsDep) -> HTMLResponse:
    """Show users and the latest actions."""
    users, actions = await components.users.all(), await components.users.actions(30)
    unpublished = {statement.user_name for statement in await components.users.unpublished_rights()}
    return await page(
        request, session, "users.html", users=users, actions=actions, roles=list(Role), unpublished=unpublished
    )


@pages.post("")
async def submit_user(
    request: Request,
    session: Administrator,
    components: ComponentsDep,
    name: TextField = "",
    password: TextField = "",
    roles: RolesField = [],  # noqa: B006 - FastAPI copies it
    groups: GroupsField = "",
) -> Response:
    """Add a user."""
    user = await components.users.add(name, password, roles, groups.split(","), by=session.user.name)
    return await redirect(request, session, "/users", f"User {user.name} added.")


@pages.post("/{name}")
async def submit_change(
    name: UserName,
    request: Request,
    session: Administrator,
    components: ComponentsDep,
    roles: RolesField = [],  # noqa: B006 - FastAPI copies it
    groups: GroupsField = "",
    *,
    disabled: Annotated[bool, Form()] = False,
) -> Response:
    """Change a user's rights, which ends the user's sessions."""
    user = await components.users.change(
        name, roles=roles, groups=groups.split(","), disabled=disabled, by=session.user.name
    )
    return await redirect(request, session, "/users", f"User {user.name} changed and signed out.")


@pages.post("/{name}/revoke-links")
async def submit_link_revocation(
    name: UserName, request: Request, session: Administrator, components: ComponentsDep
) -> Response:
    """Revoke a user's current links, delegations and key files."""
    await components.users.revoke_links(name, by=session.user.name)
    return await redirect(request, session, "/users", f"Links and delegations of {name} revoked.")


@pages.post("/{name}/password")
async def submit_password(
    name: UserName, request: Request, session: Administrator, components: ComponentsDep, password: TextField = ""
) -> Response:
    """Set a user's password, which ends the user's sessions."""
    await components.users.set_password(name, password, by=session.user.name)
    return await redirect(request, session, "/users", f"Password of {name} changed.")
