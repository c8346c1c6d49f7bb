"""Client of the engine's admin API: registration, invocations, SQL queries."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import cache
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import httpx

from perdure._runtime.engine_messages import says_not_routed, says_partition_unavailable
from perdure._runtime.http import http_client
from perdure._runtime.outcomes import describe
from perdure.engine.proxy_responses import ProxyResponse, proxy_response
from perdure.engine.starting import START_TIMEOUT, start_delays
from perdure.errors import Acceptance, EngineError, InvocationNotFound
from perdure.observability.logging import get_logger

log = get_logger(__name__)

_MAX_MESSAGE: Final = 100
_CANCEL_SIGNAL: Final = '"SignalIndex":1}'
"""Part of the journal entry of a cancel."""
_FIRST_TIMER: Final = '"CompletionId":1}'
"""Part of the journal entry of the end of a timer that is the first command of its handler."""

InvocationAction = Literal["cancel", "kill", "pause", "resume", "restart-as-new", "purge"]


class AdminClient:
    """Client of the admin API, used as an async context manager.

    Args:
        url: The URL, for example ``http://127.0.0.1:9070``. The API has no authentication.
        http: A HTTP client to use, which is not closed.
        start_timeout: How long a query or action is repeated while partitions have no leader, as for a moment after the
            engine's start; zero for no repetition.
    """

    def __init__(
        self, url: str, *, http: httpx.AsyncClient | None = None, start_timeout: timedelta = START_TIMEOUT
    ) -> None:
        self.url = url.rstrip("/")
        self._start_timeout = start_timeout
        self._owned = http is None
        self._http = http or http_client(url, timeout=30.0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._owned:
            await self._http.aclose()

    async def healthy(self) -> bool:
        """Return whether the admin API responds."""
        try:
            response = await self._http.get(f"{self.url}/health")
        except httpx.TransportError:
            return False
        return response.is_success

    async def register(self, uri: str, *, use_http_11: bool = False, force: bool = True) -> list[str]:
        """Register a deployment.

        Args:
            uri: The URL of the services, for example ``http://127.0.0.1:9081``.
            use_http_11: Whether the server supports HTTP/1.1 only.
            force: Whether to discover the services of a registered URL again. Otherwise, the engine ignores changes.

        Returns:
            The names of the discovered services.

        Raises:
            EngineError: The engine refuses the registration or cannot reach the services.
        """
        body = {"uri": uri, "use_http_11": use_http_11, "force": force}
        response = await self._send("POST", "/deployments", json=body)
        return [service["name"] for service in response.json()["services"]]

    async def discover(self, uri: str, *, use_http_11: bool = False) -> list[dict[str, Any]]:
        """Return the services that a registration of a URL would find, without registering them.

        Raises:
            EngineError: The engine would refuse the registration, or cannot reach the services.
        """
        body = {"uri": uri, "use_http_11": use_http_11, "force": True, "dry_run": True}
        response = await self._send("POST", "/deployments", json=body)
        return list(response.json()["services"])

    async def services(self) -> list[dict[str, Any]]:
        """Return the registered services."""
        response = await self._send("GET", "/services")
        return list(response.json()["services"])

    async def deployments(self) -> list[dict[str, Any]]:
        """Return the registered deployments, with the names of their services."""
        response = await self._send("GET", "/deployments")
        return list(response.json()["deployments"])

    async def deployment(self, deployment_id: str) -> dict[str, Any]:
        """Return a deployment with the handlers of its services, which `deployments` omits.

        Raises:
            EngineError: The deployment does not exist.
        """
        response = await self._send("GET", f"/deployments/{quote(deployment_id, safe='')}")
        return dict(response.json())

    async def move_deployment(self, deployment_id: str, uri: str) -> None:
        """Change the URL of a deployment whose code is unchanged.

        Raises:
            EngineError: The deployment does not exist, or the engine cannot reach the URL.
        """
        await self._send("PATCH", f"/deployments/{quote(deployment_id, safe='')}", json={"uri": uri})

    async def remove_deployment(self, deployment_id: str) -> None:
        """Remove a deployment, even if invocations still need it."""
        await self._send("DELETE", f"/deployments/{quote(deployment_id, safe='')}?force=true")

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of an SQL query.

        Args:
            sql: A query over the engine's tables (``sys_invocation``, ``state``, …). Quote values with `sql_text`.

        Raises:
            EngineError: The engine refuses the query.
        """
        response = await self._send("POST", "/query", json={"query": sql}, headers={"accept": "application/json"})
        return list(response.json()["rows"])

    async def control_invocation(self, invocation_id: str, action: InvocationAction) -> None:
        """Cancel, kill, pause, resume, restart or purge an invocation.

        Args:
            invocation_id: The invocation.
            action: The action. A kill does not let the handler compensate. ``restart-as-new`` runs an ended invocation
                again, as a new one.


        Raises:
            InvocationNotFound: There is no such invocation.
            EngineError: The state of the invocation does not permit the action, or the outcome is unknown. See
                `acceptance`.
        """
        try:
            await self._send("PATCH", f"/invocations/{quote(invocation_id, safe='')}/{action}")
        except EngineError as error:
            if error.status_code != 404 or error.acceptance is Acceptance.UNKNOWN:
                raise
            raise InvocationNotFound(str(error), status_code=404, acceptance=error.acceptance) from error

    async def control_if_permitted(self, invocation_id: str, action: InvocationAction) -> bool:
        """Control an invocation, or return False if it does not exist or its state does not permit the action.

        Args:
            invocation_id: The invocation.
            action: The action, see `control_invocation`.

        Raises:
            EngineError: The outcome is unknown.
        """
        try:
            await self.control_invocation(invocation_id, action)
        except EngineError as error:
            if error.acceptance is not Acceptance.NOT_ACCEPTED or error.status_code not in (404, 409):
                raise
            return False
        return True

    async def is_cancelled(self, invocation_id: str, *, has_deadline: bool = False) -> bool:
        """Return whether a running invocation was cancelled, even if the cancel was not delivered yet.

        Args:
            invocation_id: The invocation.
            has_deadline: Whether its first command is a timer whose end counts as a cancel.
        """
        rows = await self.query(
            f"select entry_type, entry_lite_json from sys_journal where id = {sql_text(invocation_id)} "  # noqa: S608 - quoted
            "and entry_type in ('Notification: Signal', 'Notification: Sleep')"
        )
        signs = {"Notification: Signal": _CANCEL_SIGNAL}
        if has_deadline:
            signs["Notification: Sleep"] = _FIRST_TIMER
        return any(row["entry_type"] in signs and signs[row["entry_type"]] in row["entry_lite_json"] for row in rows)

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        delays = start_delays(self._start_timeout)
        while True:
            response = await self._request(method, path, options)
            if response.is_success:
                return response
            message, is_engine = _message(response)
            is_starting = says_partition_unavailable(message) if path == "/query" else says_not_routed(message)
            delay = next(delays, None) if is_starting else None
            if delay is None:
                break
            await asyncio.sleep(delay.total_seconds())
        refused = is_engine and 400 <= response.status_code < 500
        if is_starting:
            message += "; the engine is starting: try again in a moment"
        raise EngineError(
            f"the engine's admin API at {self.url} refused {method} {path}: {response.status_code} {message}",
            status_code=response.status_code,
            acceptance=Acceptance.NOT_ACCEPTED if refused or is_starting else Acceptance.UNKNOWN,
        )

    async def _request(self, method: str, path: str, options: Mapping[str, Any]) -> httpx.Response:
        """Send a request and return the engine's response, which may be an error."""
        try:
            response = await self._http.request(method, self.url + path, **options)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise EngineError(
                f"'{self.url}' is not a URL: set PERDURE_ADMIN_URL, for example to http://127.0.0.1:9070",
                acceptance=Acceptance.NOT_ACCEPTED,
            ) from error
        except httpx.TransportError as error:
            unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise EngineError(
                f"the engine's admin API at {self.url} does not answer ({type(error).__name__}): "
                "start the engine, or set PERDURE_ADMIN_URL",
                acceptance=Acceptance.NOT_ACCEPTED if unsent else Acceptance.UNKNOWN,
            ) from error
        if (failure := proxy_response(response)) in (ProxyResponse.NOT_SENT, ProxyResponse.UNKNOWN_OUTCOME):
            raise EngineError(
                f"the engine's admin API behind {self.url} does not answer ({failure}): start the engine",
                acceptance=Acceptance.NOT_ACCEPTED if failure is ProxyResponse.NOT_SENT else Acceptance.UNKNOWN,
            )
        return response


def _message(response: httpx.Response) -> tuple[str, bool]:
    """Return the message of an error response, and whether the engine sent it."""
    try:
        return str(response.json()["message"]), True
    except (ValueError, LookupError, TypeError):
        return response.text.strip().partition("\n")[0][:_MAX_MESSAGE], False


@cache
def cancel_finder(url: str) -> Callable[[str, bool], Awaitable[bool]]:
    """Return a function that asks the engine whether a running invocation was cancelled; see `is_cancelled`.

    Args:
        url: The URL of the admin API.
    """

    async def is_cancelled(invocation_id: str, has_deadline: bool) -> bool:
        try:
            async with AdminClient(url) as admin:
                return await admin.is_cancelled(invocation_id, has_deadline=has_deadline)
        except Exception as error:  # noqa: BLE001 - a search must not fail the code that it is made for
            reason = describe(error)
            log.warning("cannot search for a cancel; it takes effect when the running code ends", reason=reason)
            return False

    return is_cancelled


def sql_text(value: str) -> str:
    """Return a value as a quoted SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def sql_interval(duration: timedelta) -> str:
    """Return a duration as an SQL interval."""
    return f"interval '{int(duration.total_seconds() * 1000)} milliseconds'"


def failure_message(failure: Any) -> str | None:
    """Return the message of a failure that the engine stores, without status code and stack trace."""
    if not failure:
        return None
    text = str(failure).partition("\nTraceback")[0].strip()
    return re.sub(r"^\[\d{3}[^\]]*\]\s*", "", text)
