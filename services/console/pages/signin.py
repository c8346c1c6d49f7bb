"""Signing in and out, and one's own account."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from services.console.guard.access import Viewer, check_same_origin
from services.console.guard.addresses import client_address
from services.console.guard.cookies import clear_cookie, device_cookie_name, set_cookie, set_device_cookie
from services.console.pages.render import page
from services.console.parts import PartsOf
from services.console.problems import ConsoleError

router = APIRouter()

Text = Annotated[str, Form(max_length=200)]


def local_path(to: str) -> str:
    """Return a path of the console to go to after signing in; the first page for anything else.

    Args:
        to: What the address says.
    """
    safe = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable()
    return to if safe else "/"


@router.get("/signin")
async def show_sign_in(request: Request, to: str = "/") -> HTMLResponse:
    """Show the form to sign in."""
    return await page(request, None, "signin.html", to=local_path(to), name="", problem=None)


@router.post("/signin")
async def sign_in(request: Request, found: PartsOf, name: Text = "", password: Text = "", to: Text = "/") -> Response:
    """Sign in, and go on to the page that was asked for."""
    check_same_origin(request)
    address = client_address(request, found.settings)
    try:
        device = request.cookies.get(device_cookie_name(found.settings))
        person = await found.sign_in.check(name, password, address=address, device=device)
    except ConsoleError as error:
        answer = await page(
            request, None, "signin.html", status=error.status, to=local_path(to), name=name, problem=error.message
        )
        if error.retry_after is not None:
            answer.headers["retry-after"] = str(error.retry_after)
        return answer
    agent = request.headers.get("user-agent", "")
    token, info, _ = await found.sessions.begin(person, address=address, agent=agent)
    response = RedirectResponse(quote(local_path(to), safe="/%?&=+:;,@~!$'()*"), status_code=303)
    set_cookie(response, found.settings, token, info)
    new_device = await found.devices.remember(person, address, device, browser=True)
    if new_device is not None:
        set_device_cookie(response, found.settings, new_device)
    return response


@router.post("/signout")
async def sign_out(signed_in: Viewer, found: PartsOf) -> Response:
    """End this session."""
    found.signer.forget(signed_in)
    await found.sessions.end(signed_in)
    return _signed_out(found)


@router.post("/signout-everywhere")
async def sign_out_everywhere(signed_in: Viewer, found: PartsOf) -> Response:
    """End all sessions of who is signed in."""
    found.signer.forget(signed_in)
    await found.sessions.end_all(signed_in.person.name)
    return _signed_out(found)


@router.get("/account")
async def show_account(request: Request, signed_in: Viewer, found: PartsOf) -> HTMLResponse:
    """Show one's own account."""
    return await page(request, signed_in, "account.html", sessions=await found.sessions.of(signed_in))


@router.post("/account/password")
async def change_password(signed_in: Viewer, found: PartsOf, old: Text = "", new: Text = "") -> Response:
    """Change one's own password; it ends all sessions."""
    await found.sign_in.change_password(signed_in, old, new)
    return _signed_out(found)


def _signed_out(found: PartsOf) -> Response:
    response = RedirectResponse("/signin", status_code=303)
    clear_cookie(response, found.settings)
    return response
