"""The gateway: external programs call public handlers through it, and reach nothing else.

The engine's ingress does not authenticate callers, so it stays on an internal address. The gateway accepts an API key
or the token of a session, in ``Authorization: Bearer``. It ignores cookies, so that no web page can call on behalf of a
user.

======================================================= ===========================================================
POST /gateway/{Service}/[{key}/]{handler}               call and wait for the result
POST /gateway/{Service}/[{key}/]{handler}/send          send, optionally with ``?delay=10s``; returns the ID
GET  /gateway/restate/workflow/{Service}/{key}/attach   wait for the result of a started workflow
GET  /gateway/restate/workflow/{Service}/{key}/output   get the result of an ended workflow
======================================================= ===========================================================

The request is built anew: only the headers listed below reach the handler and the journal. The gateway encrypts and
decrypts the bodies of encrypted journals.

The gateway signs caller, handler and body, see `perdure.security.callers`. By that signature, callers can attach to and
read only the executions that they have started; operators can read all. Idempotency keys are separate per caller.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from perdure._runtime.engine_messages import says_workflow_started
from perdure._runtime.places import OutputSource, Place
from perdure.engine.ingress_errors import may_be_unknown, response_error
from perdure.engine.ingress_requests import open_output, path_segment
from perdure.engine.starting import REGISTRATION_TIMEOUT, start_delays
from perdure.errors import Acceptance, IngressError, InvocationNotFound, NotReady, NotRegistered, UnreadableValue
from perdure.idempotency import KEY_IS_USED_ONCE
from perdure.observability.logging import get_logger
from perdure.security import CALLER_HEADER, CallerKind, CallTarget, TrustedKeys
from perdure.security import Caller as SignedCaller
from perdure.security.encodings import canonical_json
from perdure.security.user_names import PROGRAM_PREFIX
from services.console.auth.api_keys import PREFIX as KEY_PREFIX
from services.console.auth.api_keys import ApiKey
from services.console.auth.roles import Role, is_permitted
from services.console.auth.sessions import Session
from services.console.dependencies import Components
from services.console.engine import UNKNOWN_OUTCOME
from services.console.problems import ConsoleError
from services.gateway.directory import Directory, Handlers
from services.gateway.executions import Executions
from services.gateway.limits import RateLimits
from services.gateway.paths import PREFIX, GatewayRequest, parse_path

log = get_logger(__name__)

_IDEMPOTENCY_KEY: Final = "idempotency-key"
_FORWARDED: Final = (_IDEMPOTENCY_KEY, "traceparent", "tracestate")
_RETURNED: Final = ("content-type", "x-restate-id", "x-restate-error-source")
_MAX_HEADER: Final = 512
# Read and discarded beyond the limit, since many clients read no response while they send.
_MAX_DISCARDED: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Caller:
    """An authenticated caller, by its API key or session."""

    credential: ApiKey | Session

    @property
    def identity(self) -> SignedCaller:
        """The caller as signed for handlers."""
        if isinstance(self.credential, ApiKey):
            name = f"{PROGRAM_PREFIX}{self.credential.name}"
            return SignedCaller(name=name, kind=CallerKind.PROGRAM, owner=self.credential.created_by)
        return SignedCaller(name=self.credential.user.name)

    @property
    def name(self) -> str:
        """The caller's name, for logs and limits. User names never start with the prefix of programs."""
        return self.identity.name

    def is_limited_to_own(self, request: GatewayRequest, handlers: Handlers) -> bool:
        """Return whether the request reads an execution that the caller must have started."""
        reads_result = request.operation in ("attach", "output")
        if isinstance(self.credential, ApiKey):
            return reads_result or (request.service in handlers.mains and request.name in handlers.reading)
        return reads_result and not is_permitted(self.credential.user.roles, Role.OPERATOR)

    def check(self, request: GatewayRequest, handlers: Handlers) -> None:
        """Check that the caller may call the handler.

        Raises:
            ConsoleError: There is no such public handler (404), or the caller may not call it (403).
        """
        if request.name not in handlers.public:
            raise ConsoleError(404, "not_public", f"no public handler {request.name[:200]}")
        if isinstance(self.credential, ApiKey):
            if not self.credential.permits(request.name):
                raise ConsoleError(403, "not_permitted", f"this API key does not permit {request.name}")
            return
        # Any role permits read-only handlers. All others may change something, which needs an operator.
        reads = request.name in handlers.reading or request.operation in ("attach", "output")
        role = Role.VIEWER if reads else Role.OPERATOR
        if not is_permitted(self.credential.user.roles, role):
            raise ConsoleError(403, "role_needed", f"{request.name} requires role '{role}'", role=role.value)


class Gateway:
    """An ASGI application, mounted in the console's application, whose components it uses."""

    def __init__(self) -> None:
        self._directory: Directory | None = None
        self._limits: RateLimits | None = None
        self._executions: Executions | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        request = Request(scope, receive)
        components: Components = scope["app"].state.components
        try:
            response = await self._respond(request, components)
        except ConsoleError as error:
            headers = dict(error.headers)
            if error.status == 401:
                headers["www-authenticate"] = "Bearer"
            if error.status in (408, 413):
                headers["connection"] = "close"  # the rest of the body is not read
            response = JSONResponse(error.problem.model_dump(exclude_none=True), error.status, headers)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _respond(self, request: Request, components: Components) -> Response:
        caller = await _authenticate(request, components)
        async with self._limits_of(components).counted(caller.name):
            try:
                parsed, status, response = await self._forward(request, components, caller)
            except ConsoleError as error:
                log.warning("gateway.rejected", caller=caller.name, status=error.status, code=error.problem.code)
                raise
        log.info("gateway.called", caller=caller.name, handler=parsed.name, operation=parsed.operation, status=status)
        return response

    async def _forward(
        self, request: Request, components: Components, caller: Caller
    ) -> tuple[GatewayRequest, int, Response]:
        handlers = await self._directory_of(components).handlers()
        raw_path = request.scope.get("raw_path") or b""
        parsed = parse_path(raw_path, request.scope.get("query_string") or b"", handlers.keyed)
        caller.check(parsed, handlers)
        if request.method != parsed.method:
            raise ConsoleError(405, "method_not_allowed", f"{parsed.operation} requires the method {parsed.method}")
        if caller.is_limited_to_own(parsed, handlers):
            await self._check_own(components, caller, parsed, handlers)
        headers = _headers(request, caller)
        settings = components.settings
        body = await _body(request, settings.gateway_max_body, settings.gateway_body_within)
        if body:
            if request.headers.getlist("content-type") != ["application/json"]:
                raise ConsoleError(415, "not_json", "send JSON, with content-type: application/json")
            headers["content-type"] = "application/json"
        if parsed.method == "POST":
            _check_request(handlers, parsed, body)
            target = CallTarget(service=parsed.service, handler=parsed.handler, key=parsed.key or "")
            headers[CALLER_HEADER] = components.signer.sign_call(
                caller.identity, target, body, delay=parsed.delay_duration
            )
        response = await _send(components, parsed, headers, body)
        return parsed, response.status_code, _response(components, parsed, response)

    async def _check_own(
        self, components: Components, caller: Caller, parsed: GatewayRequest, handlers: Handlers
    ) -> None:
        main = handlers.mains.get(parsed.service, parsed.handler)
        target = CallTarget(service=parsed.service, handler=main, key=parsed.key or "")
        if await self._executions_of(components).starter(target) != caller.name:
            raise ConsoleError(
                404,
                "no_execution",
                f"you have not started {parsed.service}/{(parsed.key or '')[:200]}, or its retention has ended",
            )

    def _executions_of(self, components: Components) -> Executions:
        if self._executions is None or self._executions.engine is not components.engine:
            trusted_keys = TrustedKeys(issuers=(components.signer.issuer, *components.settings.issuers))
            self._executions = Executions(components.engine, trusted_keys)
        return self._executions

    def _directory_of(self, components: Components) -> Directory:
        if self._directory is None or self._directory.engine is not components.engine:
            self._directory = Directory(components.engine)
        return self._directory

    def _limits_of(self, components: Components) -> RateLimits:
        if self._limits is None:
            settings = components.settings
            self._limits = RateLimits(settings.gateway_rate, concurrency=settings.gateway_at_once)
        return self._limits


async def _authenticate(request: Request, components: Components) -> Caller:
    values = request.headers.getlist("authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() == "bearer" and token:
        if token.startswith(KEY_PREFIX):
            if (key := await components.api_keys.find(token)) is not None:
                return Caller(key)
        elif (session := await components.sessions.find(token)) is not None:
            return Caller(session)
    raise ConsoleError(401, "sign_in", "send an API key or the token of a session as Authorization: Bearer")


def _headers(request: Request, caller: Caller) -> dict[str, str]:
    headers = {}
    for name in _FORWARDED:
        values = request.headers.getlist(name)
        if not values:
            continue
        if len(values) > 1 or len(values[0]) > _MAX_HEADER or not (values[0].isascii() and values[0].isprintable()):
            raise ConsoleError(
                400, "invalid_header", f"send {name} once, in at most {_MAX_HEADER} printable ASCII characters"
            )
        headers[name] = values[0]
    if _IDEMPOTENCY_KEY in headers:
        separate = canonical_json([caller.name, headers[_IDEMPOTENCY_KEY]])
        headers[_IDEMPOTENCY_KEY] = hashlib.sha256(separate).hexdigest()
    return headers


async def _body(request: Request, limit: int, timeout: timedelta) -> bytes:
    too_long = ConsoleError(413, "too_long", f"a body may have at most {limit} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit + _MAX_DISCARDED:
        raise too_long
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            async for chunk in request.stream():
                received += len(chunk)
                if received <= limit:
                    body += chunk
                elif received > limit + _MAX_DISCARDED:
                    break
    except TimeoutError as error:
        raise ConsoleError(408, "too_slow", f"the body did not arrive within {timeout.total_seconds():g} s") from error
    if received > limit:
        raise too_long
    return bytes(body)


def _check_request(handlers: Handlers, request: GatewayRequest, body: bytes) -> None:
    """Refuse a body that the handler cannot read, before it uses up the key of a workflow."""
    try:
        payload = json.loads(body) if body else None
    except (ValueError, RecursionError) as error:
        raise ConsoleError(400, "invalid_input", f"the body is not JSON: {error}") from error
    problem = handlers.catalog.request_problem(request.service, request.handler, request.key, payload)
    if problem is not None:
        raise ConsoleError(400, "invalid_input", f"{request.name}: {problem.text}")


async def _send(
    components: Components, request: GatewayRequest, headers: dict[str, str], body: bytes
) -> httpx.Response:
    """Return the engine's response, which may be an error of the handler.

    A just-started engine does not know its handlers for a moment, so the request is repeated.
    """
    codec = components.engine.codec
    if request.method == "POST" and codec is not None:
        body = codec.seal(body, Place.input(request.service, request.key, request.handler))
        headers = {**headers, "content-type": "application/json"}  # an empty body is not empty once encrypted
    delays = start_delays(REGISTRATION_TIMEOUT)
    while True:
        response = await _send_once(components, request, headers, body)
        error = None if response.is_success else response_error(response)
        is_early = isinstance(error, NotRegistered)
        if error is not None and request.operation == "attach" and may_be_unknown(error):
            # Only a request for the output distinguishes a missing execution from a handler's 404.
            response = await _send_once(components, replace(request, operation="output"), headers, body)
            error = None if response.is_success else response_error(response)
            is_early = isinstance(error, NotReady)
        delay = next(delays, None) if is_early else None
        if delay is None:
            break
        await asyncio.sleep(delay.total_seconds())
    if error is not None and (problem := _engine_problem(error, request)) is not None:
        raise problem from error
    return response


async def _send_once(
    components: Components, request: GatewayRequest, headers: dict[str, str], body: bytes
) -> httpx.Response:
    engine, timeout = components.engine, components.settings.gateway_answer_within.total_seconds()
    try:
        return await engine.http.request(
            request.method,
            engine.ingress_url + request.path,
            content=body if request.method == "POST" else None,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=3.0),
            follow_redirects=False,
        )
    except httpx.ReadTimeout as error:
        raise ConsoleError(
            504, UNKNOWN_OUTCOME, f"no response within {timeout:g} s; the call continues: use /send, and attach later"
        ) from error
    except httpx.TransportError as error:
        is_unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        if is_unsent or request.method == "GET":
            raise ConsoleError(503, "engine_down", "the engine does not respond") from error
        raise _unknown_outcome("the connection to the engine broke") from error


def _engine_problem(error: IngressError, request: GatewayRequest) -> ConsoleError | None:
    """Return the problem of an error that is neither a handler's nor a refusal by the ingress."""
    if isinstance(error, InvocationNotFound):
        name = f"{request.service}/{(request.key or '')[:200]}"
        return ConsoleError(404, "no_execution", f"there is no execution {name}, or its retention has ended")
    if isinstance(error, NotRegistered):
        return ConsoleError(503, "not_deployed", f"not deployed: {error.message}")
    if request.method == "POST" and error.acceptance is Acceptance.UNKNOWN:
        return _unknown_outcome(error.message)
    return None if error.status_code else ConsoleError(503, "engine_down", "the engine does not respond")


def _unknown_outcome(cause: str) -> ConsoleError:
    advice = "the outcome is unknown: repeat the request only with its idempotency key, or for the same workflow"
    return ConsoleError(504, UNKNOWN_OUTCOME, f"{cause}; {advice}")


def _response(components: Components, request: GatewayRequest, response: httpx.Response) -> Response:
    headers = {name: response.headers[name] for name in _RETURNED if name in response.headers}
    content = response.content
    codec = components.engine.codec
    if not response.is_success:
        content = _explained(content, request)
    elif codec is not None and request.operation != "send":
        try:
            source = OutputSource("", request.service, request.key or "", request.handler)
            content = open_output(response, codec, source)
        except UnreadableValue as error:
            raise ConsoleError(
                502, "unreadable", "cannot decrypt the response; the console's log has details"
            ) from error
    return Response(content, response.status_code, headers)


def _explained(content: bytes, request: GatewayRequest) -> bytes:
    """Remove the stack trace that a handler without retries leaves in its error message, and explain a used key."""
    try:
        problem: Any = json.loads(content)
    except ValueError:
        return content
    if not isinstance(problem, dict) or not isinstance(problem.get("message"), str):
        return content
    message = f"\n{problem['message']}".partition("\nTraceback")[0].strip() or "the handler failed"
    if says_workflow_started(message):
        workflow = f"{path_segment(request.service)}/{path_segment(request.key or '')}"
        message = f"{message}: {KEY_IS_USED_ONCE}. Attach with GET {PREFIX}/restate/workflow/{workflow}/attach"
    return json.dumps({**problem, "message": message}).encode()
