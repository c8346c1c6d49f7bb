"""Keys of programs that call handlers through the gateway, for administrators."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Form, Path, Request
from fastapi.responses import HTMLResponse, Response

from services.console.guard.access import Administrator
from services.console.pages.render import done, page
from services.console.pages.signin import Text
from services.console.parts import PartsOf
from services.console.people.persons import utc_now
from services.console.problems import invalid

router = APIRouter()

_LONGEST = 3650


@router.get("/keys")
async def list_keys(request: Request, signed_in: Administrator, found: PartsOf) -> HTMLResponse:
    """Show the keys there are."""
    return await page(request, signed_in, "keys.html", keys=await found.api_keys.all(), now=utc_now(), made=None)


@router.post("/keys")
async def add_key(
    request: Request,
    signed_in: Administrator,
    found: PartsOf,
    name: Text = "",
    handlers: Annotated[str, Form(max_length=10_000)] = "",
    days: Annotated[str, Form(max_length=10)] = "",
) -> HTMLResponse:
    """Make a key, and show it: in the answer to the form, so that it is kept nowhere."""
    lifetime = None
    if days.strip():
        if not days.strip().isdecimal() or not 1 <= int(days) <= _LONGEST:
            raise invalid(f"a key lasts 1 to {_LONGEST} days, or for ever when that is left empty")
        lifetime = timedelta(days=int(days))
    made = await found.api_keys.add(name, handlers.split(), lifetime=lifetime, by=signed_in.person.name)
    return await page(request, signed_in, "keys.html", keys=await found.api_keys.all(), now=utc_now(), made=made)


@router.post("/keys/{name}/remove")
async def remove_key(
    name: Annotated[str, Path(max_length=100)], request: Request, signed_in: Administrator, found: PartsOf
) -> Response:
    """End a key, at once."""
    await found.api_keys.remove(name, by=signed_in.person.name)
    return await done(request, signed_in, f"the key {name} has ended", "/keys")
