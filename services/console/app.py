"""The console's web application: components, routes, static files and error responses."""

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
from services.console.account import routes as account
from services.console.alert_count import AlertCount
from services.console.api_keys import routes as api_keys
from services.console.approvals import links
from services.console.approvals import routes as approvals
from services.console.auth.access import CSRF_HEADER
from services.console.auth.api_keys import ApiKeys
from services.console.auth.cookies import session_cookie_name
from services.console.auth.devices import Devices
from services.console.auth.passwords import Passwords
from services.console.auth.sessions import Sessions
from services.console.auth.sign_in import SignIn, SignInLimits
from services.console.auth.users import Clock, Users, utc_now
from services.console.database import Database
from services.console.dead_letters import routes as dead_letters
from services.console.dependencies import Components
from services.console.engine import EngineClient
from services.console.health import routes as health
from services.console.held_steps import routes as held_steps
from services.console.invocations import routes as invocations
from services.console.middleware import BodyLimit, SecurityHeaders
from services.console.problems import ConsoleError
from services.console.rendering import fragment, page
from services.console.rights_publisher import RightsPublisher
from services.console.sagas import routes as sagas
from services.console.schedules import routes as schedules
from services.console.services import routes as services
from services.console.settings import ConsoleSettings
from services.console.signing import Signer, load_key
from services.console.stream_limits import StreamLimits
from services.console.users import routes as users
from services.database_outages import DatabaseUnavailable
from services.gateway.app import Gateway
from services.gateway.paths import PREFIX as GATEWAY_PREFIX

log = get_logger("services.console")

_DATABASE_UNAVAILABLE: Final = "database_unavailable"
_STATIC: Final = Path(__file__).parent / "static"
_FEATURES: Final = (
    account,
    health,
    sagas,
    approvals,
    dead_letters,
    held_steps,
    invocations,
    services,
    schedules,
    users,
    api_keys,
)


def create_app(settings: ConsoleSettings, *, hasher: PasswordHasher | None = None, now: Clock = utc_now) -> FastAPI:
    """Return the console's application, which also serves the gateway.

    Args:
        settings: The settings.
        hasher: The password hasher, with the default parameters unless given.
        now: The clock of sessions and sign-ins.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _components(settings, hasher, now) as components:
            app.state.components = components
            yield

    app = FastAPI(
        title="Perdure console",
        summary="All functions of the console's pages.",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,  # Swagger UI loads scripts from another site
        redoc_url=None,
        lifespan=lifespan,
        swagger_ui_oauth2_redirect_url=None,
    )
    for feature in _FEATURES:
        app.include_router(feature.api)
    for feature in (*_FEATURES, links):
        app.include_router(feature.pages, include_in_schema=False)
    app.mount(GATEWAY_PREFIX, Gateway())
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    _add_probes(app)
    _add_error_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(SecurityHeaders, https=settings.is_https)
    _document_authentication(app, settings)
    return app


@asynccontextmanager
async def _components(
    settings: ConsoleSettings, hasher: PasswordHasher | None, now: Clock
) -> AsyncIterator[Components]:
    database = Database(settings.database)
    try:
        await database.prepare()
        users = Users(database, Passwords(hasher or settings.hasher), now, action_retention=settings.action_retention)
        devices = Devices(database, now)
        limits = SignInLimits(
            rate=settings.sign_ins,
            per_name=settings.attempts_per_name,
            per_address=settings.attempts_per_address,
            window=settings.attempts_window,
        )
        codec = codec_from_environment()
        signer = Signer(load_key(settings.issuer_key), now)
        async with (
            EngineClient.open(settings.ingress_url, settings.admin_url, codec) as engine,
            RightsPublisher(users, engine, signer).running(),
        ):
            yield Components(
                settings=settings,
                engine=engine,
                database=database,
                users=users,
                sessions=Sessions(database, idle=settings.session_idle, length=settings.session_length, now=now),
                sign_in=SignIn(database, users, devices, limits, now),
                signer=signer,
                api_keys=ApiKeys(database, now),
                alert_count=AlertCount(engine),
                devices=devices,
                stream_limits=StreamLimits(
                    per_session=settings.streams_per_session,
                    per_user=settings.streams_per_user,
                    total=settings.streams,
                ),
            )
    finally:
        await database.dispose()


def _add_probes(app: FastAPI) -> None:
    @app.get("/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        """Report liveness."""
        return {"status": "ok"}

    @app.get("/ready", include_in_schema=False)
    async def ready(request: Request) -> JSONResponse:
        """Report readiness: whether the database responds. Without the engine, pages report the outage."""
        try:
            await request.app.state.components.database.check()
        except DatabaseUnavailable as error:
            return JSONResponse({"status": str(error)}, status_code=503)
        except SQLAlchemyError:
            return JSONResponse({"status": "the console's database lacks its tables"}, status_code=503)
        return JSONResponse({"status": "ok"})


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ConsoleError)
    async def on_problem(request: Request, error: ConsoleError) -> Response:
        return await _error_response(request, error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        fields = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()[:5])
        status = 400 if any(each["type"] == INVISIBLE_CHARACTER for each in error.errors()) else 422
        return await _error_response(request, ConsoleError(status, "invalid_input", f"invalid request: {fields}"))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        messages = {400: "the request cannot be parsed", 404: "page not found", 405: "method not allowed"}
        message = messages.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_input")
        response = await _error_response(request, ConsoleError(error.status_code, code, message))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(DatabaseUnavailable)
    async def on_outage(request: Request, error: DatabaseUnavailable) -> Response:
        log.warning("console.database_unavailable", path=request.url.path, reason=str(error))
        return await _error_response(request, ConsoleError(503, _DATABASE_UNAVAILABLE, f"{error}; try again later"))

    @app.exception_handler(Exception)
    async def on_exception(request: Request, error: Exception) -> Response:
        log.error("console.internal_error", path=request.url.path, exc_info=error)
        message = "internal error of the console; its log has the details"
        return await _error_response(request, ConsoleError(500, "internal_error", message))


async def _error_response(request: Request, error: ConsoleError) -> Response:
    """Return an error as JSON for the API, as a fragment for htmx, or as a page."""
    headers = dict(error.headers)
    path = request.url.path
    if path.startswith(("/api/", GATEWAY_PREFIX)) or path == "/api":
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(error.problem.model_dump(exclude_none=True), status_code=error.status, headers=headers)
    if "hx-request" in request.headers:
        if error.status == 401:
            return Response(status_code=401, headers={"hx-redirect": "/signin"})
        html = fragment("_problem.html", problem=error.problem, status=error.status)
        # Without hx-select of the request, which selects an element that the fragment does not have.
        htmx = {"hx-retarget": "#problems", "hx-reswap": "innerHTML", "hx-reselect": "unset"}
        return HTMLResponse(html, error.status, headers | htmx)
    if error.status == 401:
        requested = path + (f"?{request.url.query}" if request.url.query else "")
        to = quote(requested, safe="") if request.method == "GET" else ""
        return RedirectResponse(f"/signin?to={to}" if to and requested != "/" else "/signin", status_code=303)
    components: Components = request.app.state.components
    session = None
    # The lookup of the session itself may have failed.
    if error.status != 500 and error.problem.code != _DATABASE_UNAVAILABLE:
        token = request.cookies.get(session_cookie_name(components.settings))
        session = await components.sessions.find(token) if token else None
    response = await page(
        request, session, "problem.html", status=error.status, problem=error.problem, error_status=error.status
    )
    response.headers.update(headers)
    return response


def _document_authentication(app: FastAPI, settings: ConsoleSettings) -> None:
    """Add the security schemes to the OpenAPI document."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = original()
        schema.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "`token` of POST /api/session."},
            "cookie": {
                "type": "apiKey",
                "in": "cookie",
                "name": session_cookie_name(settings),
                "description": f"The session of a browser. Changes also need the header {CSRF_HEADER}.",
            },
        }
        schema["security"] = [{"bearer": []}, {"cookie": []}]
        schema["paths"]["/api/session"]["post"]["security"] = []
        app.openapi_schema = schema
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # as in FastAPI's documentation
