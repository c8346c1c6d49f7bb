"""Routes for sign-in, sign-out and the user's own account."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from services.console.account.schemas import Account, Credentials, NewSession, PasswordChange
from services.console.auth.access import check_same_origin
from services.console.auth.client_address import client_address
from services.console.auth.cookies import (
    clear_session_cookie,
    device_cookie_name,
    set_device_cookie,
    set_session_cookie,
)
from services.console.dependencies import Components, ComponentsDep, TextField, Viewer
from services.console.problems import DATABASE_ERRORS, PUBLIC_ERRORS, ConsoleError, error_responses
from services.console.rendering import page

api = APIRouter(prefix="/api", tags=["account"])
pages = APIRouter()


@api.post(
    "/session", status_code=201, responses={**PUBLIC_ERRORS, **error_responses(401, 429, 503)}, operation_id="sign_in"
)
async def sign_in(
    credentials: Credentials, request: Request, response: Response, components: ComponentsDep
) -> NewSession:
    """Sign in."""
    check_same_origin(request)
    address = client_address(request, components.settings)
    device = request.cookies.get(device_cookie_name(components.settings))
    user = await components.sign_in.verify(credentials.name, credentials.password, address=address, device=device)
    await components.devices.remember(user, address, device, browser=False)
    agent = request.headers.get("user-agent", "")
    token, info, csrf = await components.sessions.start(user, address=address, agent=agent)
    set_session_cookie(response, components.settings, token, info)
    return NewSession(token=token, csrf=csrf, ends_at=info.ends_at)


@api.get("/session", responses=DATABASE_ERRORS, operation_id="account")
async def show(session: Viewer, components: ComponentsDep) -> Account:
    """Return the authenticated user and all sessions."""
    return Account(user=session.user, sessions=await components.sessions.all_of(session))


@api.delete("/session", status_code=204, responses=DATABASE_ERRORS, operation_id="sign_out")
async def sign_out(session: Viewer, response: Response, components: ComponentsDep) -> None:
    """End this session."""
    components.signer.forget(session)
    await components.sessions.end(session)
    clear_session_cookie(response, components.settings)


@api.delete("/sessions", status_code=204, responses=DATABASE_ERRORS, operation_id="sign_out_everywhere")
async def sign_out_everywhere(session: Viewer, response: Response, components: ComponentsDep) -> None:
    """End all sessions of the authenticated user."""
    components.signer.forget(session)
    await components.sessions.end_all(session.user.name)
    clear_session_cookie(response, components.settings)


@api.post("/password", status_code=204, responses=DATABASE_ERRORS, operation_id="change_password")
async def change_password(
    change: PasswordChange, session: Viewer, response: Response, components: ComponentsDep
) -> None:
    """Change the password of the authenticated user, which ends all sessions."""
    await components.sign_in.change_password(session, change.old, change.new)
    clear_session_cookie(response, components.settings)


def local_path(to: str) -> str:
    """Return the path to visit after the sign-in; ``/`` unless it is a path of the console."""
    is_safe = to.startswith("/") and not to.startswith(("//", "/\\")) and to.isprintable()
    return to if is_safe else "/"


@pages.get("/signin")
async def sign_in_page(request: Request, to: str = "/") -> HTMLResponse:
    """Show the sign-in form."""
    return await page(request, None, "signin.html", to=local_path(to), name="", problem=None)


@pages.post("/signin")
async def submit_sign_in(
    request: Request, components: ComponentsDep, name: TextField = "", password: TextField = "", to: TextField = "/"
) -> Response:
    """Sign in and redirect to the requested page."""
    check_same_origin(request)
    address = client_address(request, components.settings)
    try:
        device = request.cookies.get(device_cookie_name(components.settings))
        user = await components.sign_in.verify(name, password, address=address, device=device)
    except ConsoleError as error:
        response = await page(
            request, None, "signin.html", status=error.status, to=local_path(to), name=name, problem=error.message
        )
        response.headers.update(error.headers)
        return response
    agent = request.headers.get("user-agent", "")
    token, info, _ = await components.sessions.start(user, address=address, agent=agent)
    redirect = RedirectResponse(quote(local_path(to), safe="/%?&=+:;,@~!$'()*"), status_code=303)
    set_session_cookie(redirect, components.settings, token, info)
    new_device = await components.devices.remember(user, address, device, browser=True)
    if new_device is not None:
        set_device_cookie(redirect, components.settings, new_device)
    return redirect


@pages.post("/signout")
async def submit_sign_out(session: Viewer, components: ComponentsDep) -> Response:
    """End this session."""
    components.signer.forget(session)
    await components.sessions.end(session)
    return _to_sign_in(components)


@pages.post("/signout-everywhere")
async def submit_sign_out_everywhere(session: Viewer, components: ComponentsDep) -> Response:
    """End all sessions of the authenticated user."""
    components.signer.forget(session)
    await components.sessions.end_all(session.user.name)
    return _to_sign_in(components)


@pages.get("/account")
async def account_page(request: Request, session: Viewer, components: ComponentsDep) -> HTMLResponse:
    """Show the account of the authenticated user."""
    return await page(request, session, "account.html", sessions=await components.sessions.all_of(session))


@pages.post("/account/password")
async def submit_password(
    session: Viewer, components: ComponentsDep, old: TextField = "", new: TextField = ""
) -> Response:
    """Change the password of the authenticated user, which ends all sessions."""
    await components.sign_in.change_password(session, old, new)
    return _to_sign_in(components)


def _to_sign_in(components: Components) -> Response:
    response = RedirectResponse("/signin", status_code=303)
    clear_session_cookie(response, components.settings)
    return response
