"""The gateway: programs outside call public handlers through it, and reach nothing else.

The engine's ingress asks nobody who they are, so it stays on an internal address. Here a caller has a key
(`services.console.people.api_keys`) or a session's token, in ``Authorization: Bearer``; a browser's cookie counts for
nothing, so no page can call in somebody's name.

======================================================= ===========================================================
POST /gateway/{Service}/[{key}/]{handler}               call, and wait for the answer
POST /gateway/{Service}/[{key}/]{handler}/send          start, with ``?delay=10s`` later; the answer is its id
GET  /gateway/restate/workflow/{Service}/{key}/attach   wait for a workflow that was started
GET  /gateway/restate/workflow/{Service}/{key}/output   its result, when it has ended
======================================================= ===========================================================

What arrives at the handler is written anew: of the headers, those that are named below; no others reach the journal.
Where the journal is encrypted, the gateway seals and opens.

The gateway signs who calls which handler with which body, see `perdure.security.callers`. By that signature a caller
can attach to, and read the status of, only the executions that it has started; an operator, who may steer each
invocation, can read all of them. Idempotency keys are a caller's own: two callers' equal keys are different ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from perdure._runtime.places import OutputSource, Place
from perdure.engine.ingress_requests import open_output
from perdure.errors import UnreadableValue
from perdure.observability.logging import get_logger
from perdure.security import CALLER_HEADER, CallerKind, CallTarget, TrustedKeys
from perdure.security import Caller as SignedCaller
from perdure.security.encodings import canonical_json
from perdure.security.user_names import PROGRAM_PREFIX
from services.console.gateway.directory import Directory, Known
from services.console.gateway.executions import Executions
from services.console.gateway.limits import RateLimits
from services.console.gateway.paths import Asked, read_path
from services.console.parts import Parts
from services.console.people.api_keys import PREFIX as KEY_PREFIX
from services.console.people.api_keys import ApiKey
from services.console.people.roles import Role, may
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError

log = get_logger(__name__)

_IDEMPOTENCY_KEY: Final = "idempotency-key"
_FORWARDED: Final = (_IDEMPOTENCY_KEY, "traceparent", "tracestate")
_RETURNED: Final = ("content-type", "x-restate-id", "x-restate-error-source")
_LONGEST_VALUE: Final = 512
# So much of a body that is too long is read and thrown away: many clients read no answer while they are sending.
_PATIENCE: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Args:
        rights: The key or the session that they have.
    """

    rights: ApiKey | SignedIn

    @property
    def identity(self) -> SignedCaller:
        """The caller, as handlers are told it."""
        if isinstance(self.rights, ApiKey):
            name = f"{PROGRAM_PREFIX}{self.rights.name}"
            return SignedCaller(name=name, kind=CallerKind.PROGRAM, owner=self.rights.created_by)
        return SignedCaller(name=self.rights.person.name)

    @property
    def name(self) -> str:
        """The caller's name, for logs and limits; no person has a program's name."""
        return self.identity.name

    def needs_own(self, asked: Asked, known: Known) -> bool:
        """Tell if what they ask for is the result or status of an execution, and theirs only if they started it.

        Args:
            asked: What they ask for.
            known: The handlers.
        """
        if isinstance(self.rights, ApiKey):
            return asked.way in ("attach", "output") or (asked.service in known.mains and asked.name in known.reading)
        return asked.way in ("attach", "output") and not may(self.rights.person.roles, Role.OPERATOR)

    def check(self, asked: Asked, known: Known) -> None:
        """Refuse what they may not ask for.

        Args:
            asked: What they ask for.
            known: The handlers.

        Raises:
            ConsoleError: There is no such public handler (404), or it isn't theirs to call (403).
        """
        if asked.name not in known.public:
            raise ConsoleError(404, "not_public", f"there is no public handler {asked.name[:200]}")
        if isinstance(self.rights, ApiKey):
            if not self.rights.allows(asked.name):
                raise ConsoleError(403, "not_yours", f"this key may not call {asked.name}: it was made for others")
            return
        # What says that it only reads is for all roles; all else may change something, and is an operator's.
        reads = asked.name in known.reading or asked.way in ("attach", "output")
        role = Role.VIEWER if reads else Role.OPERATOR
        if not may(self.rights.person.roles, role):
            raise ConsoleError(403, "role_needed", f"{asked.name} needs the role '{role}' here", role=role.value)


class Gateway:
    """An ASGI app, mounted in the console. See the module.

    It finds the console's parts in the application that it is mounted in, as that has started.
    """

    def __init__(self) -> None:
        self._directory: Directory | None = None
        self._limits: RateLimits | None = None
        self._executions: Executions | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        parts: Parts = scope["app"].state.parts
        try:
            answer = await self._answer(request, parts)
        except ConsoleError as error:
            headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
            if error.status == 401:
                headers["www-authenticate"] = "Bearer"
            if error.status in (408, 413):
                headers["connection"] = "close"  # the rest of the body isn't wanted
            answer = JSONResponse(error.problem.model_dump(exclude_none=True), error.status, headers)
        except ClientDisconnect:
            return
        await answer(scope, receive, send)

    async def _answer(self, request: Request, parts: Parts) -> Response:
        caller = await _caller(request, parts)
        async with self._limits_of(parts).taken(caller.name):
            try:
                asked, status, answer = await self._forward(request, parts, caller)
            except ConsoleError as error:
                log.warning("gateway.refused", caller=caller.name, status=error.status, code=error.problem.code)
                raise
        log.info("gateway.called", caller=caller.name, handler=asked.name, way=asked.way, status=status)
        return answer

    async def _forward(self, request: Request, parts: Parts, caller: Caller) -> tuple[Asked, int, Response]:
        known = await self._directory_of(parts).known()
        raw_path = request.scope.get("raw_path") or b""
        asked = read_path(raw_path, request.scope.get("query_string") or b"", known.keyed)
        caller.check(asked, known)
        if request.method != asked.method:
            raise ConsoleError(405, "method_not_allowed", f"{asked.way} needs the method {asked.method}")
        if caller.needs_own(asked, known):
            await self._check_own(parts, caller, asked, known)
        headers = _headers(request, caller)
        body = await _body(request, parts.settings.gateway_max_body, parts.settings.gateway_body_within)
        if body:
            if request.headers.getlist("content-type") != ["application/json"]:
                raise ConsoleError(415, "not_json", "send JSON, with content-type: application/json")
            headers["content-type"] = "application/json"
        if asked.method == "POST":
            target = CallTarget(service=asked.service, handler=asked.handler, key=asked.key or "")
            headers[CALLER_HEADER] = parts.signer.vouch(caller.identity, target, body, delay=asked.waits)
        answer = await _ask(parts, asked, headers, body)
        return asked, answer.status_code, _returned(parts, asked, answer)

    async def _check_own(self, parts: Parts, caller: Caller, asked: Asked, known: Known) -> None:
        main = known.mains.get(asked.service, asked.handler)
        target = CallTarget(service=asked.service, handler=main, key=asked.key or "")
        if await self._executions_of(parts).starter(target) != caller.name:
            raise ConsoleError(
                404,
                "no_execution",
                f"you have started no execution {asked.service}/{(asked.key or '')[:200]} that the engine still knows",
            )

    def _executions_of(self, parts: Parts) -> Executions:
        if self._executions is None or self._executions.engine is not parts.engine:
            trusted_keys = TrustedKeys(issuers=(parts.signer.issuer, *parts.settings.issuers))
            self._executions = Executions(parts.engine, trusted_keys)
        return self._executions

    def _directory_of(self, parts: Parts) -> Directory:
        if self._directory is None or self._directory.engine is not parts.engine:
            self._directory = Directory(parts.engine)
        return self._directory

    def _limits_of(self, parts: Parts) -> RateLimits:
        if self._limits is None:
            chosen = parts.settings
            self._limits = RateLimits(chosen.gateway_rate, at_once=chosen.gateway_at_once)
        return self._limits


async def _caller(request: Request, parts: Parts) -> Caller:
    given = request.headers.getlist("authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() == "bearer" and token:
        if token.startswith(KEY_PREFIX):
            if (key := await parts.api_keys.find(token)) is not None:
                return Caller(key)
        elif (signed_in := await parts.sessions.find(token)) is not None:
            return Caller(signed_in)
    raise ConsoleError(401, "sign_in", "send a key, or a session's token, as Authorization: Bearer")


def _headers(request: Request, caller: Caller) -> dict[str, str]:
    headers = {}
    for name in _FORWARDED:
        values = request.headers.getlist(name)
        if not values:
            continue
        if len(values) > 1 or len(values[0]) > _LONGEST_VALUE or not (values[0].isascii() and values[0].isprintable()):
            raise ConsoleError(
                400, "header_refused", f"send {name} once, in at most {_LONGEST_VALUE} printable ASCII characters"
            )
        headers[name] = values[0]
    if _IDEMPOTENCY_KEY in headers:
        own = canonical_json([caller.name, headers[_IDEMPOTENCY_KEY]])
        headers[_IDEMPOTENCY_KEY] = hashlib.sha256(own).hexdigest()
    return headers


async def _body(request: Request, longest: int, within: timedelta) -> bytes:
    too_long = ConsoleError(413, "too_long", f"a body may have {longest} bytes")
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > longest + _PATIENCE:
        raise too_long
    body, taken = bytearray(), 0
    try:
        async with asyncio.timeout(within.total_seconds()):
            async for chunk in request.stream():
                taken += len(chunk)
                if taken <= longest:
                    body += chunk
                elif taken > longest + _PATIENCE:
                    break
    except TimeoutError as error:
        raise ConsoleError(408, "too_slow", f"the body did not arrive within {within.total_seconds():g} s") from error
    if taken > longest:
        raise too_long
    return bytes(body)


async def _ask(parts: Parts, asked: Asked, headers: dict[str, str], body: bytes) -> httpx.Response:
    engine, within = parts.engine, parts.settings.gateway_answer_within.total_seconds()
    if asked.method == "POST" and engine.codec is not None:
        body = engine.codec.seal(body, Place.input(asked.service, asked.key, asked.handler))
        headers = {**headers, "content-type": "application/json"}  # sealed, an empty body is one, too
    try:
        return await engine.http.request(
            asked.method,
            engine.ingress_url + asked.path,
            content=body if asked.method == "POST" else None,
            headers=headers,
            timeout=httpx.Timeout(within, connect=3.0),
            follow_redirects=False,
        )
    except httpx.ReadTimeout as error:
        raise ConsoleError(
            504, "no_answer_yet", f"no answer within {within:g} s; it may still come: send, and attach later"
        ) from error
    except httpx.TransportError as error:
        raise ConsoleError(503, "engine_down", "the engine does not answer") from error


def _returned(parts: Parts, asked: Asked, answer: httpx.Response) -> Response:
    headers = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
    content = answer.content
    if not answer.is_success:
        content = _without_trace(content)
    elif parts.engine.codec is not None and asked.way != "send":
        try:
            source = OutputSource("", asked.service, asked.key or "", asked.handler)
            content = open_output(answer, parts.engine.codec, source)
        except UnreadableValue as error:
            raise ConsoleError(502, "unreadable", "the answer cannot be opened; the console's log says why") from error
    return Response(content, answer.status_code, headers)


def _without_trace(content: bytes) -> bytes:
    """Cut the stack trace off that a handler without attempts leaves in its message."""
    try:
        problem: Any = json.loads(content)
    except ValueError:
        return content
    if not isinstance(problem, dict) or not isinstance(problem.get("message"), str):
        return content
    message = f"\n{problem['message']}".partition("\nTraceback")[0].strip() or "the handler failed"
    return json.dumps({**problem, "message": message}).encode()
