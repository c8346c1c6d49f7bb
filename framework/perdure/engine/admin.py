"""The engine's admin API: registration, invocations, and questions in SQL."""

from __future__ import annotations

import re
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import httpx

from perdure._runtime.tls import tls_context
from perdure.engine.proxy_answers import ProxyAnswer, proxy_answer
from perdure.errors import EngineError

_LONGEST_LINE: Final = 100
_STARTING: Final = "node lookup for partition"
"""What it says of its tables until each of its partitions has a leader."""

InvocationAction = Literal["cancel", "kill", "pause", "resume", "restart-as-new", "purge"]


class AdminClient:
    """Asks and steers one engine. Use it as an async context manager.

    Args:
        url: The admin API, for example ``http://127.0.0.1:9070``. It has no authentication of its own.
        http: A client to use instead of an own one; it is not closed.
    """

    def __init__(self, url: str, *, http: httpx.AsyncClient | None = None) -> None:
        self.url = url.rstrip("/")
        self._owned = http is None
        self._http = http or httpx.AsyncClient(timeout=30.0, verify=tls_context())

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
        """Tell if the admin API answers."""
        try:
            response = await self._http.get(f"{self.url}/health")
        except httpx.TransportError:
            return False
        return response.is_success

    async def register(self, uri: str, *, use_http_11: bool = False, force: bool = True) -> list[str]:
        """Register a deployment, or take the new revision of one that is registered.

        Args:
            uri: Where the engine reaches the services, for example ``http://127.0.0.1:9081``.
            use_http_11: The server speaks HTTP/1.1 only.
            force: Take the services as they are now. Without it, the engine keeps what it knows of this address, even
                when the code changed.

        Returns:
            The names of the services found there.

        Raises:
            EngineError: The engine refused, or could not reach the services.
        """
        body = {"uri": uri, "use_http_11": use_http_11, "force": force}
        response = await self._send("POST", "/deployments", json=body)
        return [service["name"] for service in response.json()["services"]]

    async def services(self) -> list[dict[str, Any]]:
        """Return what the engine knows of the registered services."""
        response = await self._send("GET", "/services")
        return list(response.json()["services"])

    async def deployments(self) -> list[dict[str, Any]]:
        """Return the registered deployments, with the names of their services."""
        response = await self._send("GET", "/deployments")
        return list(response.json()["deployments"])

    async def deployment(self, deployment_id: str) -> dict[str, Any]:
        """Return a registered deployment, with its services' handlers, which the list of all leaves out.

        Args:
            deployment_id: The deployment.

        Raises:
            EngineError: The engine does not know the deployment.
        """
        response = await self._send("GET", f"/deployments/{quote(deployment_id, safe='')}")
        return dict(response.json())

    async def move_deployment(self, deployment_id: str, uri: str) -> None:
        """Tell the engine that a deployment, with the same code, is reached elsewhere now.

        Args:
            deployment_id: The deployment.
            uri: Its new address.

        Raises:
            EngineError: The engine does not know the deployment, or could not reach the address.
        """
        await self._send("PATCH", f"/deployments/{quote(deployment_id, safe='')}", json={"uri": uri})

    async def remove_deployment(self, deployment_id: str) -> None:
        """Forget a deployment, whether invocations still need it or not."""
        await self._send("DELETE", f"/deployments/{quote(deployment_id, safe='')}?force=true")

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Ask in SQL.

        Args:
            sql: A query over the engine's tables (``sys_invocation``, ``state``, …). Quote values with `sql_text`.

        Returns:
            The rows.

        Raises:
            EngineError: The engine refused the query.
        """
        response = await self._send("POST", "/query", json={"query": sql}, headers={"accept": "application/json"})
        return list(response.json()["rows"])

    async def act(self, invocation_id: str, act: InvocationAction) -> None:
        """Cancel, kill, pause, resume, restart or purge an invocation.

        Args:
            invocation_id: The invocation.
            act: What to do with it. A kill gives the handler no chance to compensate; ``restart-as-new`` runs one that
                ended again, as another invocation.

        Raises:
            EngineError: There is no such invocation, or it is in no state for that.
        """
        await self._send("PATCH", f"/invocations/{quote(invocation_id, safe='')}/{act}")

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, self.url + path, **options)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            like = "http://127.0.0.1:9070 in PERDURE_ADMIN_URL"
            raise EngineError(f"the admin API's address '{self.url}' is none: write it as {like}") from error
        except httpx.TransportError as error:
            silent = f"the engine's admin API at {self.url} does not answer ({type(error).__name__})"
            raise EngineError(f"{silent}: start it, or set PERDURE_ADMIN_URL") from error
        if response.is_success:
            return response
        if (said := proxy_answer(response)) in (ProxyAnswer.NOT_SENT, ProxyAnswer.UNKNOWN_OUTCOME):
            raise EngineError(f"the engine's admin API behind {self.url} does not answer ({said}): start the engine")
        try:
            message = str(response.json()["message"])
        except (ValueError, LookupError, TypeError):  # not by the engine: a whole page, perhaps
            message = response.text.strip().partition("\n")[0][:_LONGEST_LINE]
        if _STARTING in message:
            message += "; it is still starting: try again in a moment"
        raise EngineError(
            f"the engine's admin API at {self.url} refused {method} {path}: {response.status_code} {message}",
            status_code=response.status_code,
        )


def sql_text(value: str) -> str:
    """Return a value as a quoted SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def sql_interval(duration: timedelta) -> str:
    """Return a duration as an SQL interval."""
    return f"interval '{int(duration.total_seconds() * 1000)} milliseconds'"


def failure_message(failure: Any) -> str | None:
    """Return a failure's message without the engine's status code in front and without a stack trace.

    Args:
        failure: The text that the engine stores.
    """
    if not failure:
        return None
    text = str(failure).partition("\nTraceback")[0].strip()
    return re.sub(r"^\[\d{3}[^\]]*\]\s*", "", text)
