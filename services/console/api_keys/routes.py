"""Routes for API keys."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Form, Path, Request
from fastapi.responses import HTMLResponse, Response

from services.console.api_keys.schemas import MAX_DAYS, CreatedApiKey, NewApiKey
from services.console.auth.api_keys import ApiKey
from services.console.auth.users import utc_now
from services.console.dependencies import Administrator, ComponentsDep, TextField
from services.console.problems import DATABASE_ERRORS, invalid
from services.console.rendering import page, redirect

api = APIRouter(prefix="/api/keys", tags=["API keys"], responses=DATABASE_ERRORS)
pages = APIRouter(prefix="/keys")

KeyName = Annotated[str, Path(max_length=100)]


@api.get("", operation_id="list_api_keys")
async def list_all(_: Administrator, components: ComponentsDep) -> list[ApiKey]:
    """List API keys."""
    return await components.api_keys.all()


@api.post("", status_code=201, operation_id="create_api_key")
async def create(new: NewApiKey, session: Administrator, components: ComponentsDep) -> CreatedApiKey:
    """Create an API key for a program."""
    lifetime = None if new.days is None else timedelta(days=new.days)
    secret, key = await components.api_keys.add(new.name, new.handlers, lifetime=lifetime, by=session.user.name)
    return CreatedApiKey(secret=secret, key=key)


@api.delete("/{name}", status_code=204, operation_id="revoke_api_key")
async def revoke(name: KeyName, session: Administrator, components: ComponentsDep) -> None:
    """Revoke an API key at once."""
    await components.api_keys.revoke(name, by=session.user.name)


@pages.get("")
async def list_page(request: Request, session: Administrator, components: ComponentsDep) -> HTMLResponse:
    """Show the API keys."""
    keys = await components.api_keys.all()
    return await page(request, session, "api_keys.html", keys=keys, now=utc_now(), created=None)


@pages.post("")
async def submit_key(
    request: Request,
    session: Administrator,
    components: ComponentsDep,
    name: TextField = "",
    handlers: Annotated[str, Form(max_length=10_000)] = "",
    days: Annotated[str, Form(max_length=10)] = "",
) -> HTMLResponse:
    """Create an API key and show it in the response, since the secret is not stored."""
    lifetime = None
    if days.strip():
        if not days.strip().isdecimal() or not 1 <= int(days) <= MAX_DAYS:
            raise invalid(f"the lifetime must be 1 to {MAX_DAYS} days, or empty for no limit")
        lifetime = timedelta(days=int(days))
    created = await components.api_keys.add(name, handlers.split(), lifetime=lifetime, by=session.user.name)
    keys = await components.api_keys.all()
    return await page(request, session, "api_keys.html", keys=keys, now=utc_now(), created=created)


@pages.post("/{name}/revoke")
async def submit_revocation(
    name: KeyName, request: Request, session: Administrator, components: ComponentsDep
) -> Response:
    """Revoke an API key at once."""
    await components.api_keys.revoke(name, by=session.user.name)
    return await redirect(request, session, "/keys", f"API key {name} revoked.")
