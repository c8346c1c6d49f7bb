"""Where scenarios are played: a running platform, seen from outside through its ingress, and through its database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import httpx
from sqlalchemy import func, select, update

from perdure import IngressClient, StatusData
from perdure._runtime.places import Place
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, PerdureError
from perdure.saga.messages import rollback_status
from perdure.saga.status import RollbackState
from perdure.security import ActorKey
from services.contracts import trips
from services.contracts.trips import TripRequest
from services.data_plane.audit.trips import Trip, load
from services.data_plane.database import Database
from services.data_plane.tables import FlightRow, HotelRow, LedgerTransactionRow
from services.runtime.approval_audit import audit_platform
from services.runtime.connections import local_http
from services.runtime.platform import Platform

PASSWORD_MEMORY: Final = 64
"""How many KiB a password's hash takes at the console of a stage: little, since it signs in often."""

_LOOK: Final = 0.02
_WITHIN: Final = timedelta(seconds=20)
_JSON: Final = {"content-type": "application/json"}


class HarnessError(PerdureError):
    """A scenario waited for something that did not happen."""


@dataclass(frozen=True)
class Fact:
    """One thing that a scenario expects, and what was observed.

    Args:
        what: What it is about.
        expected: What should be.
        observed: What is.
    """

    what: str
    expected: str
    observed: str

    @property
    def agrees(self) -> bool:
        """True when what is, should be."""
        return self.expected == self.observed


def harness_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the services of a stage are told: nothing of the user's own platform, and to wait less.

    Args:
        environment: This process's environment.
    """
    without = {name: value for name, value in environment.items() if not name.startswith("PERDURE_")}
    return {
        **without,
        "PERDURE_ORCHESTRATOR_COMPENSATION_ATTEMPTS": "3",
        "PERDURE_ORCHESTRATOR_COMPENSATION_DELAY": "PT0.1S",
        "PERDURE_ORCHESTRATOR_ROLLBACK_WAIT": "PT5M",
        "PERDURE_SAGA_RECONCILER_INTERVAL": "PT2S",
        "PERDURE_SAGA_RECONCILER_GRACE": "PT1S",
        "PERDURE_CONSOLE_PASSWORD_MEMORY": str(PASSWORD_MEMORY),
    }


class Stage:
    """A platform to play scenarios on. Open it with `on`.

    Args:
        platform: The running platform.
        http: For requests that no well-behaved client would make.
        database: The data plane's database, to look at.
        actor_key: Signs the calls; unsigned calls when left out.
    """

    def __init__(
        self, platform: Platform, http: httpx.AsyncClient, database: Database, actor_key: ActorKey | None = None
    ) -> None:
        self.platform = platform
        self.ingress = IngressClient(
            platform.topology.ingress_url, http=http, codec=platform.codec, actor_key=actor_key
        )
        self._http = http
        self._database = database

    @classmethod
    @asynccontextmanager
    async def on(cls, platform: Platform, actor_key: ActorKey | None = None) -> AsyncIterator[Self]:
        """Open a stage on a platform.

        Args:
            platform: The running platform.
            actor_key: Signs the calls; unsigned calls when left out.
        """
        database = Database(platform.topology.database_url)
        try:
            async with local_http() as http:
                yield cls(platform, http, database, actor_key)
        finally:
            await database.dispose()

    async def book(self, trip_id: str, order: TripRequest) -> str:
        """Book a trip, and return the answer in words: ``confirmed``, or how it was refused.

        Args:
            trip_id: The trip.
            order: What to book.
        """
        return await answer(self.ingress.call(trips.book, order, key=trip_id))

    async def send(self, trip_id: str, order: TripRequest) -> None:
        """Book a trip without waiting for the answer.

        Args:
            trip_id: The trip.
            order: What to book.
        """
        await self.ingress.send(trips.book, order, key=trip_id)

    async def result(self, trip_id: str) -> str:
        """Wait for the answer to a trip that was booked before.

        Args:
            trip_id: The trip.
        """
        return await answer(self.ingress.attach(trips.book, key=trip_id))

    async def post(self, trip_id: str, body: bytes) -> httpx.Response:
        """Send a body, whatever it is, as an order for a trip; sealed where the journal is encrypted.

        Args:
            trip_id: The trip's id, whatever it is.
            body: The body.
        """
        codec = self.platform.codec
        url = f"{self.ingress.url}/Trips/{quote(trip_id, safe='')}/run"
        content = codec.seal(body, Place.input("Trips", trip_id, "run")) if codec else body
        return await self._http.post(url, content=content, headers=_JSON)

    async def status(self, trip_id: str) -> StatusData:
        """Return a trip's status.

        Args:
            trip_id: The trip.
        """
        return await self.ingress.call(trips.status, key=trip_id)

    async def until_step(self, trip_id: str, step: str) -> None:
        """Wait until a trip is in a step.

        Args:
            trip_id: The trip.
            step: The step's name.

        Raises:
            HarnessError: It doesn't get there in time, or has ended.
        """
        give_up = time.monotonic() + _WITHIN.total_seconds()
        while True:
            status = await self.status(trip_id)
            if status.current_step == step and not status.is_complete:
                return
            if status.is_complete or time.monotonic() > give_up:
                raise HarnessError(f"trip {trip_id} did not come to step '{step}': {status.model_dump_json()}")
            await asyncio.sleep(_LOOK)

    async def trip(self, trip_id: str) -> Trip:
        """Return what the database knows of a trip.

        Args:
            trip_id: The trip.
        """
        async with self._database.snapshot() as connection:
            return (await load(connection)).get(trip_id, Trip())

    async def charges_ever(self, trip_id: str) -> int:
        """Return how often money was taken for a trip, whether or not it was given back.

        Args:
            trip_id: The trip.
        """
        query = select(func.count()).where(
            LedgerTransactionRow.trip_id == trip_id, LedgerTransactionRow.kind == "charge"
        )
        async with self._database.snapshot() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def stock(self) -> dict[str, int]:
        """Return how many seats and rooms are left, by flight and hotel."""
        async with self._database.snapshot() as connection:
            seats = await connection.execute(select(FlightRow.number, FlightRow.seats_left))
            rooms = await connection.execute(select(HotelRow.name, HotelRow.rooms_left))
            return {name: left for rows in (seats, rooms) for name, left in rows}

    async def act_on_trip(self, trip_id: str, act: Literal["cancel", "kill"]) -> None:
        """Cancel or kill a trip's orchestration in the engine, as an operator does.

        Args:
            trip_id: The trip.
            act: What to do.
        """
        async with AdminClient(self.platform.topology.admin_url) as admin:
            rows = await admin.query(
                "select id from sys_invocation_status where target_service_name = 'Trips' "
                f"and target_handler_name = 'run' and target_service_key = {sql_text(trip_id)}"
            )
            await admin.control_invocation(rows[0]["id"], act)

    async def until_rollback(self, trip_id: str, outcome: RollbackState) -> None:
        """Wait until a trip's rollback stands so.

        Args:
            trip_id: The trip.
            outcome: How it is to stand.

        Raises:
            HarnessError: It doesn't in time.
        """
        give_up = time.monotonic() + _WITHIN.total_seconds()
        while True:
            found: str = "no rollback"
            try:
                found = (await self.ingress.call(rollback_status, key=trip_id)).status.value
            except IngressError as error:
                if error.status_code != 404:
                    raise
            if found == outcome:
                return
            if time.monotonic() > give_up:
                raise HarnessError(f"the rollback of trip {trip_id} is not {outcome} but {found}")
            await asyncio.sleep(_LOOK)

    @asynccontextmanager
    async def hotel_repaired(self, name: str) -> AsyncIterator[None]:
        """Let a hotel cancel as it should, for a while: the seed data's fault is data, so its repair is, too.

        Args:
            name: The hotel.
        """
        where = HotelRow.name == name
        async with self._database.transaction() as connection:
            fault = (await connection.execute(select(HotelRow.fails_cancellations).where(where))).scalar_one()
            await connection.execute(update(HotelRow).where(where).values(fails_cancellations=0))
        try:
            yield
        finally:
            async with self._database.transaction() as connection:
                await connection.execute(update(HotelRow).where(where).values(fails_cancellations=fault))

    async def until_quiet(self) -> None:
        """Wait until all news is out: it is sent, not called, so a trip has ended when its news is still on its way.

        Raises:
            HarnessError: Some is still on its way when time is over.
        """
        on_its_way = (
            "select id from sys_invocation_status where target_service_name = 'Notifications' and status != 'completed'"
        )
        give_up = time.monotonic() + _WITHIN.total_seconds()
        async with AdminClient(self.platform.topology.admin_url) as admin:
            while rows := await admin.query(on_its_way):
                if time.monotonic() > give_up:
                    raise HarnessError(f"{len(rows)} notifications are still on their way")
                await asyncio.sleep(_LOOK)

    async def audit(self) -> str:
        """Audit the platform, with the claim that no trip is on its way; return the names of broken invariants."""
        await self.until_quiet()
        platform = self.platform
        report = await audit_platform(platform.topology, platform.environment, platform.codec, settled=True)
        if report.remarks:
            return "; ".join(report.remarks)
        broken = [invariant.name for invariant in report.invariants if not invariant.ok]
        return f"broken: {', '.join(broken)}" if broken else "holds"


async def answer(call: Awaitable[Any]) -> str:
    """Return a call's outcome in words.

    Args:
        call: A booking.

    Raises:
        IngressError: There was no answer.
    """
    try:
        await call
    except IngressError as error:
        if error.source is None:
            raise
        return describe_refusal(error)
    return "confirmed"


def describe_refusal(error: IngressError) -> str:
    """Say in words how a trip was refused: ``409 seats_sold_out at flight, rolled_back``.

    Args:
        error: What the ingress answered.
    """
    code = error.code or error.message
    step = f" at {error.metadata['step']}" if "step" in error.metadata else ""
    rollback = f", {error.metadata['rollback']}" if "rollback" in error.metadata else ""
    return f"{error.status_code} {code}{step}{rollback}"


def describe_holdings(trip: Trip) -> str:
    """Say in words what a trip holds.

    Args:
        trip: The trip.
    """
    if not any(trip.holdings):
        return "nothing"
    return f"seat sets: {trip.seat_sets}, rooms: {trip.rooms}, charges: {trip.charges}"


def describe_told(trip: Trip) -> str:
    """Say in words what a trip's traveller was told.

    Args:
        trip: The trip.
    """
    return ", ".join(kind if count == 1 else f"{count} times {kind}" for kind, count in sorted(trip.told.items())) or (
        "nothing"
    )
