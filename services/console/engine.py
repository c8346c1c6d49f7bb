"""The console's client of the engine, which reports failures as `ConsoleError`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

import httpx

from perdure import IngressClient, Target
from perdure._runtime.http import http_client
from perdure.alerts.conditions import Snapshot
from perdure.alerts.service import (
    ALERT_RETRIES,
    RECENT_KILL,
    AlertList,
    pause_reasons,
    read_alerts,
    take_snapshot,
)
from perdure.engine.admin import AdminClient, InvocationAction, sql_text
from perdure.errors import Acceptance, AlreadyStarted, EngineError, IngressError, NotRegistered, UnreadableValue
from perdure.observability.gauge_collector import decode_state_value
from perdure.saga.schema import of_key_sql
from perdure.saga.timeline import Timeline, read_timeline
from perdure.security import JournalCodec
from services.console.problems import ConsoleError

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output
T = TypeVar("T")

UNKNOWN_OUTCOME: Final = "unknown_outcome"
"""The code of an action without a response, which may still be performed."""

_TIMEOUT: Final = 15.0
# A page must not take long while the engine starts, or if a service is not deployed.
_START_TIMEOUT: Final = timedelta(seconds=5)
_REGISTRATION_TIMEOUT: Final = timedelta(seconds=2)
# Handlers that only read. A call of any other handler is an action.
_READ_HANDLERS: Final = frozenset({"list", "show", "status"})


class EngineClient:
    """Client of the engine's ingress and admin API. Its methods raise `ConsoleError`.

    Args:
        ingress_url: The ingress.
        admin_url: The admin API.
        http: The HTTP client, not closed here.
        codec: The codec of encrypted journals.
    """

    def __init__(
        self, ingress_url: str, admin_url: str, http: httpx.AsyncClient, codec: JournalCodec | None = None
    ) -> None:
        self.http = http
        self.ingress_url = ingress_url.rstrip("/")
        self.codec = codec
        self._ingress = IngressClient(
            ingress_url, http=http, max_attempts=2, codec=codec, registration_timeout=_REGISTRATION_TIMEOUT
        )
        self._admin = AdminClient(admin_url, http=http, start_timeout=_START_TIMEOUT)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, ingress_url: str, admin_url: str, codec: JournalCodec | None = None
    ) -> AsyncIterator[EngineClient]:
        """Open a client for the duration of the block."""
        timeout = httpx.Timeout(_TIMEOUT, connect=3.0)
        # Unlimited, so that calls through the gateway, which limits each caller, do not block pages.
        limits = httpx.Limits(max_connections=None)
        async with http_client(ingress_url, admin_url, timeout=timeout, limits=limits) as http:
            yield cls(ingress_url, admin_url, http, codec)

    async def call(self, target: Target[I, O, Any], request: I | None = None, *, key: str | None = None) -> O:
        """Call a handler.

        Raises:
            ConsoleError: The handler rejected the call, is not deployed, or did not respond; 504 if the outcome is
                unknown.
        """
        name = "/".join(part for part in (target.service, key, target.handler) if part)
        is_action = target.handler not in _READ_HANDLERS
        hint = f"{name} under Invocations and the object that it changes" if is_action else None
        # The client refuses a request or key that does not fit the target.
        return await _translated(self._ingress.call(target, request, key=key), hint)  # type: ignore[arg-type]

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Run an SQL query."""
        return await _translated(self._admin.query(sql))

    async def state(self, service: str, key: str, entry: str) -> bytes | None:
        """Return a decrypted entry of the state of a virtual object or workflow."""
        where = f"service_name = {sql_text(service)} and {of_key_sql(key)} and key = {sql_text(entry)}"
        rows = await self.query(f"select service_name, service_key, key, value from state where {where}")  # noqa: S608 - quoted
        if not rows:
            return None
        try:
            return decode_state_value(rows[0], self.codec)
        except UnreadableValue as error:
            raise _unreadable(error) from error

    async def services(self) -> list[dict[str, Any]]:
        """Return the registered services."""
        return await _translated(self._admin.services())

    async def deployments(self) -> list[dict[str, Any]]:
        """Return the registered deployments."""
        return await _translated(self._admin.deployments())

    async def act(self, invocation_id: str, action: InvocationAction) -> None:
        """Cancel, kill, pause or resume an invocation.

        Raises:
            ConsoleError: The invocation does not exist, its state does not permit the action, or the engine did not
                respond; 504 if the outcome is unknown.
        """
        await _translated(self._admin.control_invocation(invocation_id, action), invocation_id)

    async def alerts(self) -> AlertList:
        """Return the reconciler's alerts from its state, which also works while its service is down."""
        return await _translated(read_alerts(self._admin, self.codec))

    async def scan_alerts(self) -> Snapshot:
        """Scan the engine for alert conditions, as the reconciler does."""
        return await _translated(take_snapshot(self._admin, ALERT_RETRIES, RECENT_KILL))

    async def pause_reasons(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the errors that paused invocations, by ID; empty for a manual pause."""
        return await _translated(pause_reasons(self._admin, ids))

    async def timeline(self, saga_id: str, service: str | None = None) -> Timeline:
        """Return a saga's timeline; `service` chooses among several services with the same saga ID."""
        return await _translated(read_timeline(self._admin, self._ingress, saga_id, service=service, codec=self.codec))


async def _translated(response: Awaitable[T], hint: str | None = None) -> T:
    """Await a response and translate errors. The hint, for an action, says where its outcome shows."""
    try:
        return await response
    except EngineError as error:
        raise _engine_problem(error, hint) from error
    except IngressError as error:
        raise _ingress_problem(error, hint) from error
    except UnreadableValue as error:
        raise _unreadable(error) from error


def _unreadable(error: UnreadableValue) -> ConsoleError:
    return ConsoleError(502, "unreadable", f"{error}; the console needs the keys and the platform ID of the services")


def _engine_problem(error: EngineError, hint: str | None) -> ConsoleError:
    status = error.status_code
    if not status or _is_unknown_action(error, hint):
        return _no_response(error, str(error), hint)
    if status in (400, 404, 409):
        return ConsoleError(status, "not_found" if status == 404 else "refused", str(error))
    if status == 503:
        return ConsoleError(503, "engine_busy", str(error))
    return ConsoleError(502, "engine_rejected", str(error))


def _ingress_problem(error: IngressError, hint: str | None) -> ConsoleError:
    status = error.status_code
    if not status or _is_unknown_action(error, hint):
        return _no_response(error, error.message, hint)
    if isinstance(error, NotRegistered):
        return ConsoleError(503, "not_deployed", f"not deployed: {error.message}")
    if isinstance(error, AlreadyStarted) or (error.source == "ingress" and status == 400):
        return ConsoleError(status, "refused", error.message)  # 400: an invalid key or a private handler
    if error.source != "invocation":
        return ConsoleError(503, "engine_busy", f"the ingress cannot serve the request: {error.message}")
    if status < 500:
        # A handler's 401 concerns the signed action, not the session, so it must not ask for a sign-in.
        shown = status if status in (400, 403, 404, 409, 429) else {401: 403}.get(status, 409)
        return ConsoleError(shown, error.code or "refused", error.message)
    return ConsoleError(502, "handler_failed", error.message)


def _is_unknown_action(error: EngineError | IngressError, hint: str | None) -> bool:
    return hint is not None and error.acceptance is Acceptance.UNKNOWN


def _no_response(error: EngineError | IngressError, message: str, hint: str | None) -> ConsoleError:
    """Return the problem for a missing response. An action that may have arrived has an unknown outcome."""
    timed_out = isinstance(error.__cause__, httpx.ReadTimeout)
    is_broken = isinstance(error.__cause__, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError)
    timeout = f"no response within {_TIMEOUT:g} s"
    if _is_unknown_action(error, hint):
        cause = "the connection broke before the response" if is_broken else timeout if timed_out else message
        return ConsoleError(
            504, UNKNOWN_OUTCOME, f"{cause}; the outcome is unknown: check {hint} before you repeat the action"
        )
    if timed_out:
        return ConsoleError(504, "timeout", f"{timeout}; the engine is busy or the service is down")
    return ConsoleError(503, "engine_down", f"{message}; check that the engine is running")
