"""The console as an application: its parts, routes, files, and how problems are shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from argon2 import PasswordHasher
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from perdure._runtime.plain_text import INVISIBLE_CHARACTER
from perdure.observability.logging import get_logger
from perdure.security import codec_from_environment
from services.console.api import alerts as alerts_api
from services.console.api import approvals as approvals_api
from services.console.api import dead_letters as dead_letters_api
from services.console.api import invocations as invocations_api
from services.console.api import keys as keys_api
from services.console.api import people as people_api
from services.console.api import sagas as sagas_api
from services.console.api import session as session_api
from services.console.badge import Badge
from services.console.engine import Engine
from services.console.gateway.app import Gateway
from services.console.gateway.paths import PREFIX as GATEWAY
from services.console.guard.access import CSRF_HEADER
from services.console.guard.cookies import cookie_name
from services.console.guard.headers import SecurityHeaders
from services.console.guard.limits import BodyLimit
from services.console.pages import alerts, approvals, dead_letters, keys, links, operations, people, sagas, signin
from services.console.pages.render import fragment, page
from services.console.parts import Parts
from services.console.people.api_keys import ApiKeys
from services.console.people.database import Database
from services.console.people.devices import Devices
from services.console.people.passwords import Passwords
from services.console.people.persons import Clock, Users, utc_now
from services.console.people.sessions import Sessions
from services.console.people.signin import Limits, SignIn
from services.console.people.streams import Streams
from services.console.problems import ConsoleError, Problem
from services.console.rights import RightsSender
from services.console.settings import ConsoleSettings
from services.console.signing import Signer, load_key

log = get_logger("services.console")

_STATIC: Final = Path(__file__).parent / "static"


def create_app(settings: ConsoleSettings, *, hasher: PasswordHasher | None = None, now: Clock = utc_now) -> FastAPI:
    """Return the console.

    Args:
        settings: Its settings.
        hasher: Hashes passwords, with other costs than the usual ones.
        now: The clock by which sessions and sign-ins are limited.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database)
        try:
            await database.prepare()
            persons = Users(database, Passwords(hasher or settings.hasher), now)
            devices = Devices(database, now)
            limits = Limits(
                rate=settings.sign_ins,
                per_name=settings.attempts_per_name,
                per_address=settings.attempts_per_address,
                window=settings.attempts_window,
            )
            codec = codec_from_environment()
            signer = Signer(load_key(settings.issuer_key), now)
            async with (
                Engine.open(settings.ingress_url, settings.admin_url, codec) as engine,
                RightsSender(persons, engine, signer).sending(),
            ):
                app.state.parts = Parts(
                    settings=settings,
                    engine=engine,
                    database=database,
                    persons=persons,
                    sessions=Sessions(database, idle=settings.session_idle, length=settings.session_length, now=now),
                    sign_in=SignIn(database, persons, devices, limits, now),
                    signer=signer,
                    api_keys=ApiKeys(database, now),
                    badge=Badge(engine),
                    devices=devices,
                    streams=Streams(
                        per_session=settings.streams_per_session,
                        per_person=settings.streams_per_user,
                        most=settings.streams,
                    ),
                )
                yield
        finally:
            await database.dispose()

    app = FastAPI(
        title="Perdure console",
        summary="Everything that the console's pages do.",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        swagger_ui_oauth2_redirect_url=None,
    )
    for module in (
        session_api,
        sagas_api,
        alerts_api,
        approvals_api,
        dead_letters_api,
        invocations_api,
        people_api,
        keys_api,
    ):
        app.include_router(module.router)
    for shown in (signin, sagas, alerts, approvals, links, dead_letters, operations, people, keys):
        app.include_router(shown.router, include_in_schema=False)
    app.mount(GATEWAY, Gateway())
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    _add_health(app)
    _add_problems(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(SecurityHeaders, https=settings.is_https)
    _describe_sign_in(app, settings)
    return app


def _add_health(app: FastAPI) -> None:
    @app.get("/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        """Say that the process serves."""
        return {"status": "ok"}

    @app.get("/ready", include_in_schema=False)
    async def ready(request: Request) -> JSONResponse:
        """Say whether the console's own database answers; pages work without the engine, and say so."""
        try:
            await request.app.state.parts.database.check()
        except SQLAlchemyError:
            return JSONResponse({"status": "the console's database does not answer"}, status_code=503)
        return JSONResponse({"status": "ok"})


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(ConsoleError)
    async def on_problem(request: Request, error: ConsoleError) -> Response:
        return await _problem(request, error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        faults = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()[:5])
        status = 400 if any(each["type"] == INVISIBLE_CHARACTER for each in error.errors()) else 422
        return await _problem(request, ConsoleError(status, "invalid_input", f"this does not fit: {faults}"))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        texts = {404: "there is no such page", 405: "this can't be done here", 400: "the request can't be read"}
        message = texts.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_input")
        answer = await _problem(request, ConsoleError(error.status_code, code, message))
        for name, value in (error.headers or {}).items():
            answer.headers[name] = value
        return answer

    @app.exception_handler(Exception)
    async def on_fault(request: Request, error: Exception) -> Response:
        log.error("console.fault", path=request.url.path, exc_info=error)
        message = "something is wrong with the console itself; its log says more"
        return await _problem(request, ConsoleError(500, "fault", message))


async def _problem(request: Request, error: ConsoleError) -> Response:
    """Show a problem in the way it was asked: JSON for programs, a page or a part of one for people."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    path = request.url.path
    if path.startswith("/api/") or path == "/api":
        shown: Problem = error.problem
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(shown.model_dump(exclude_none=True), status_code=error.status, headers=headers)
    if "hx-request" in request.headers:
        if error.status == 401:
            return Response(status_code=401, headers={"hx-redirect": "/signin"})
        html = fragment("_problem.html", problem=error.problem, status=error.status)
        # Not selected from as what was asked for would be: in a problem there is no list to be found.
        htmx = {"hx-retarget": "#problems", "hx-reswap": "innerHTML", "hx-reselect": "unset"}
        return HTMLResponse(html, error.status, headers | htmx)
    if error.status == 401:
        asked = path + (f"?{request.url.query}" if request.url.query else "")
        to = quote(asked, safe="") if request.method == "GET" else ""
        return RedirectResponse(f"/signin?to={to}" if to and asked != "/" else "/signin", status_code=303)
    found: Parts = request.app.state.parts
    signed_in = None
    if error.status != 500:  # whatever is broken may be what would find that out
        token = request.cookies.get(cookie_name(found.settings))
        signed_in = await found.sessions.find(token) if token else None
    answer = await page(
        request, signed_in, "problem.html", status=error.status, problem=error.problem, status_shown=error.status
    )
    answer.headers.update(headers)
    return answer


def _describe_sign_in(app: FastAPI, settings: ConsoleSettings) -> None:
    """Add to the API's description how a program shows who it is."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = describe()
        schema.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "`token` of POST /api/session."},
            "cookie": {
                "type": "apiKey",
                "in": "cookie",
                "name": cookie_name(settings),
                "description": f"A browser's session; changes need the header {CSRF_HEADER} too.",
            },
        }
        schema["security"] = [{"bearer": []}, {"cookie": []}]
        schema["paths"]["/api/session"]["post"]["security"] = []
        app.openapi_schema = schema
        return schema

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI's own documentation has it
