"""The console's way to the engine. What goes wrong there arrives as a problem that can be shown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import httpx

from perdure import IngressClient, Target
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
from perdure.errors import EngineError, IngressError, UnreadableValue
from perdure.observability.gauge_collector import decode_state_value
from perdure.saga.timeline import Timeline, read_timeline
from perdure.security import JournalCodec
from services.console.problems import ConsoleError

I = TypeVar("I")  # noqa: E741 - the input, as the SDK names it
O = TypeVar("O")  # noqa: E741 - the output
T = TypeVar("T")

NO_ANSWER_YET: Final = "no_answer_yet"
"""The code of an act that nobody answered to, and that may be done all the same."""

_ANSWERS_WITHIN = 15.0
# The handlers by which the console looks; a call of any other one changes something.
_READING: Final = frozenset({"list", "status"})


class Engine:
    """One engine, asked over its ingress and its admin API.

    Args:
        ingress_url: The ingress.
        admin_url: The admin API.
        http: The connections; not closed here.
        codec: What the services' journal is encrypted with; None when it is in clear.
    """

    def __init__(
        self, ingress_url: str, admin_url: str, http: httpx.AsyncClient, codec: JournalCodec | None = None
    ) -> None:
        self.http = http
        self.ingress_url = ingress_url.rstrip("/")
        self.codec = codec
        self._ingress = IngressClient(ingress_url, http=http, max_attempts=2, codec=codec)
        self._admin = AdminClient(admin_url, http=http)

    @classmethod
    @asynccontextmanager
    async def open(cls, ingress_url: str, admin_url: str, codec: JournalCodec | None = None) -> AsyncIterator[Engine]:
        """Open connections, as long as the context is entered.

        Args:
            ingress_url: The ingress.
            admin_url: The admin API.
            codec: See the class.
        """
        timeout = httpx.Timeout(_ANSWERS_WITHIN, connect=3.0)
        # As many connections as are wanted: the gateway bounds each caller's, and what waits there must not keep
        # people's pages from the engine.
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False) as http:
            yield cls(ingress_url, admin_url, http, codec)

    async def call(self, target: Target[I, O], request: I | None = None, *, key: str | None = None) -> O:
        """Call a handler.

        Args:
            target: The handler.
            request: The request; None for a handler without input.
            key: The key of a virtual object or workflow.

        Raises:
            ConsoleError: The handler refused, is not deployed, or nobody answered; if that leaves open whether it was
                done, with 504.
        """
        name = "/".join(part for part in (target.service, key, target.handler) if part)
        act = None if target.handler in _READING else f"for {name} under Invocations, and at what it was to change,"
        if target.input is type(None):
            return await _told(self._ingress.call(target, key=key), act)
        return await _told(self._ingress.call(target, request, key=key), act)  # type: ignore[arg-type]  # input is not None

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Ask in SQL.

        Args:
            sql: The query.

        Raises:
            ConsoleError: The engine does not answer, or refuses the query.
        """
        return await _told(self._admin.query(sql))

    async def state(self, service: str, key: str, entry: str) -> bytes | None:
        """Return an entry of the state of a virtual object or workflow, in clear; None when there is none.

        Args:
            service: The service.
            key: The key.
            entry: The entry's name.

        Raises:
            ConsoleError: It cannot be opened, or the engine does not answer.
        """
        where = f"service_name = {sql_text(service)} and service_key = {sql_text(key)} and key = {sql_text(entry)}"
        rows = await self.query(f"select service_name, service_key, key, value from state where {where}")  # noqa: S608 - quoted
        if not rows:
            return None
        try:
            return decode_state_value(rows[0], self.codec)
        except UnreadableValue as error:
            raise _unreadable(error) from error

    async def services(self) -> list[dict[str, Any]]:
        """Return the registered services.

        Raises:
            ConsoleError: The engine does not answer.
        """
        return await _told(self._admin.services())

    async def deployments(self) -> list[dict[str, Any]]:
        """Return the registered deployments.

        Raises:
            ConsoleError: The engine does not answer.
        """
        return await _told(self._admin.deployments())

    async def act(self, invocation_id: str, act: InvocationAction) -> None:
        """Steer an invocation.

        Args:
            invocation_id: The invocation.
            act: What to do with it.

        Raises:
            ConsoleError: There is no such invocation, it is in no state for that, or the engine does not answer; if
                that leaves open whether it was done, with 504.
        """
        await _told(self._admin.act(invocation_id, act), f"at {invocation_id}")

    async def alerts(self) -> AlertList:
        """Return what the reconciler told of. Its service isn't asked: it may be down, which is when this matters most.

        Raises:
            ConsoleError: The engine does not answer.
        """
        return await _told(read_alerts(self._admin, self.codec))

    async def survey(self) -> Snapshot:
        """Return what is wrong now, as the reconciler would find it.

        Raises:
            ConsoleError: The engine does not answer.
        """
        return await _told(take_snapshot(self._admin, ALERT_RETRIES, RECENT_KILL))

    async def why_paused(self, ids: Sequence[str]) -> dict[str, str]:
        """Return why invocations are paused, by their ids; empty where by hand.

        Args:
            ids: Invocations that are paused.

        Raises:
            ConsoleError: The engine does not answer.
        """
        return await _told(pause_reasons(self._admin, ids))

    async def timeline(self, saga_id: str, service: str | None = None) -> Timeline:
        """Return a saga's timeline.

        Args:
            saga_id: The saga.
            service: Its service, when several have a saga of this id.

        Raises:
            ConsoleError: There is no such saga, or the engine does not answer.
        """
        return await _told(read_timeline(self._admin, self._ingress, saga_id, service=service, codec=self.codec))


async def _told(answer: Awaitable[T], act: str | None = None) -> T:
    """Return an answer, or raise what can be shown; with an act, say where to look whether it was done after all."""
    try:
        return await answer
    except EngineError as error:
        raise _of_engine(error, act) from error
    except IngressError as error:
        raise _of_ingress(error, act) from error
    except UnreadableValue as error:
        raise _unreadable(error) from error


def _unreadable(error: UnreadableValue) -> ConsoleError:
    return ConsoleError(502, "unreadable", f"{error}; the console needs the keys and the platform ID of the services")


def _of_engine(error: EngineError, act: str | None) -> ConsoleError:
    status = error.status_code
    if not status:
        return _unanswered(error, str(error), act)
    if status in (400, 404, 409):
        return ConsoleError(status, "not_found" if status == 404 else "refused", str(error))
    return ConsoleError(502, "engine_refused", str(error))


def _of_ingress(error: IngressError, act: str | None) -> ConsoleError:
    status = error.status_code
    if not status:
        return _unanswered(error, error.message, act)
    if error.source != "invocation":
        if status == 404:
            return ConsoleError(503, "not_deployed", f"not deployed: {error.message}")
        if status == 400:  # the ingress could not take the request as it is: a key it can't hold, a private handler
            return ConsoleError(400, "refused", error.message)
        return ConsoleError(503, "engine_busy", f"the ingress could not serve the request: {error.message}")
    if status < 500:
        # What a handler refuses to the console's person is no matter of the console's own sign-in.
        shown = status if status in (400, 403, 404, 409, 429) else {401: 403}.get(status, 409)
        return ConsoleError(shown, error.code or "refused", error.message)
    return ConsoleError(502, "handler_failed", error.message)


def _unanswered(error: EngineError | IngressError, told: str, act: str | None) -> ConsoleError:
    """Return the error for no answer: whoever has taken an act does it, if later, and it isn't to be done twice."""
    # The ends of a request that the engine may have taken. That there never was a connection is another thing.
    is_silent = isinstance(error.__cause__, httpx.ReadTimeout)
    is_broken = isinstance(error.__cause__, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError)
    within = f"no answer within {_ANSWERS_WITHIN:g} s"
    if act is not None and (is_silent or is_broken):
        taken = "the engine has the act, and it may still be done"
        if is_broken:
            within = "the connection broke before an answer came"
            taken = "the engine may have the act, and still do it"
        return ConsoleError(504, NO_ANSWER_YET, f"{within}; {taken}: look {act} before you repeat it")
    if is_silent:
        return ConsoleError(504, "no_answer", f"{within}; is the engine busy, or the service that was asked down?")
    return ConsoleError(503, "engine_down", f"{told}; is the engine running?")
