"""Harness of the scenarios: a running platform, observed through its ingress and its databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import httpx
from sqlalchemy import func, select, update

from perdure import IngressClient, StatusData
from perdure._runtime.places import Place
from perdure.approvals.targets import approval_status
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, NotFound, PerdureError
from perdure.saga.messages import rollback_status
from perdure.saga.status import RollbackState
from perdure.security import ActorKey
from services.contracts import trips
from services.contracts.trips import TripRequest
from services.data_plane.audit.trips import Trip, load
from services.data_plane.flights.tables import FlightRow
from services.data_plane.hotels.tables import HotelRow
from services.data_plane.payments.tables import LedgerTransactionRow
from services.database import Database
from services.runtime.approval_audit import audit_platform
from services.runtime.connections import local_http
from services.runtime.platform import Platform
from tests.support import eventually
from tests.system.scenarios.databases import opened_databases

PASSWORD_MEMORY: Final = 64
"""Memory in KiB of the console's password hashes: little, since tests sign in often."""

_WITHIN: Final = 20.0
_JSON: Final = {"content-type": "application/json"}


class HarnessError(PerdureError):
    """The platform did not reach the state that a scenario needs."""


@dataclass(frozen=True)
class Fact:
    """Expected and observed value of one property.

    Args:
        what: The property.
        expected: Expected value.
        observed: Observed value.
    """

    what: str
    expected: str
    observed: str

    @property
    def agrees(self) -> bool:
        """Whether the values are equal."""
        return self.expected == self.observed


def harness_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the services: without the user's settings, and with short waits.

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


class Harness:
    """Client and observer of a running platform. Open it with `on`.

    Args:
        platform: The running platform.
        http: Client for malformed requests.
        databases: Database by service, for reading.
        actor_key: Signs the calls; None leaves them unsigned.
    """

    def __init__(
        self,
        platform: Platform,
        http: httpx.AsyncClient,
        databases: Mapping[str, Database],
        actor_key: ActorKey | None = None,
    ) -> None:
        self.platform = platform
        self.ingress = IngressClient(
            platform.topology.ingress_url, http=http, codec=platform.codec, actor_key=actor_key
        )
        self._http = http
        self._databases = databases

    @classmethod
    @asynccontextmanager
    async def on(cls, platform: Platform, actor_key: ActorKey | None = None) -> AsyncIterator[Self]:
        """Open a harness on a platform.

        Args:
            platform: The running platform.
            actor_key: Signs the calls; None leaves them unsigned.
        """
        async with opened_databases(platform.topology.databases) as databases, local_http() as http:
            yield cls(platform, http, databases, actor_key)

    async def book(self, trip_id: str, order: TripRequest) -> str:
        """Book a trip and describe the response: ``confirmed``, or the refusal.

        Args:
            trip_id: The trip.
            order: The order.
        """
        return await answer(self.ingress.call(trips.book, order, key=trip_id))

    async def send(self, trip_id: str, order: TripRequest) -> None:
        """Book a trip without waiting for the response.

        Args:
            trip_id: The trip.
            order: The order.
        """
        await self.ingress.send(trips.book, order, key=trip_id)

    async def result(self, trip_id: str) -> str:
        """Wait for the end of a booked trip and describe the response.

        Args:
            trip_id: The trip.
        """
        return await answer(self.ingress.attach(trips.book, key=trip_id))

    async def post(self, trip_id: str, body: bytes) -> httpx.Response:
        """Send an arbitrary body as an order, sealed if the journal is encrypted.

        Args:
            trip_id: The trip ID, which may be invalid.
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
            HarnessError: The trip has ended.
            WaitTimeout: The trip does not reach the step in time.
        """

        async def in_step() -> bool:
            status = await self.status(trip_id)
            if status.is_complete:
                raise HarnessError(f"trip {trip_id} ended before step '{step}': {status.model_dump_json()}")
            return status.current_step == step

        await eventually(in_step, what=f"step '{step}' of trip {trip_id}", within=_WITHIN)

    async def until_approval_is_open(self, trip_id: str) -> None:
        """Wait until a trip's approval is open. The request for it is sent, so it opens shortly after the step starts.

        Args:
            trip_id: The trip.

        Raises:
            WaitTimeout: The approval does not open in time.
        """

        async def is_open() -> bool:
            try:
                await self.ingress.call(approval_status, key=trip_id)
            except IngressError as error:
                if error.code != NotFound.code:
                    raise
                return False
            return True

        await eventually(is_open, what=f"approval of trip {trip_id}", within=_WITHIN)

    async def trip(self, trip_id: str) -> Trip:
        """Return a trip's rows in the databases.

        Args:
            trip_id: The trip.
        """
        return (await load(self._databases)).get(trip_id, Trip())

    async def charges_ever(self, trip_id: str) -> int:
        """Return the number of a trip's charges, refunded ones included.

        Args:
            trip_id: The trip.
        """
        query = select(func.count()).where(
            LedgerTransactionRow.trip_id == trip_id, LedgerTransactionRow.kind == "charge"
        )
        async with self._databases["payments"].snapshot() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def stock(self) -> dict[str, int]:
        """Return the remaining seats and rooms by flight and hotel."""
        stock: dict[str, int] = {}
        queries = {
            "flights": select(FlightRow.number, FlightRow.seats_left),
            "hotels": select(HotelRow.name, HotelRow.rooms_left),
        }
        for service, query in queries.items():
            async with self._databases[service].snapshot() as connection:
                stock |= dict(iter(await connection.execute(query)))
        return stock

    async def control_trip(self, trip_id: str, action: Literal["cancel", "kill"]) -> None:
        """Cancel or kill a trip's orchestration in the engine, as an operator does.

        Args:
            trip_id: The trip.
            action: The action.
        """
        async with AdminClient(self.platform.topology.admin_url) as admin:
            rows = await admin.query(
                "select id from sys_invocation_status where target_service_name = 'Trips' "
                f"and target_handler_name = 'run' and target_service_key = {sql_text(trip_id)}"
            )
            await admin.control_invocation(rows[0]["id"], action)

    async def until_rollback(self, trip_id: str, state: RollbackState) -> None:
        """Wait for a state of a trip's rollback.

        Args:
            trip_id: The trip.
            state: The state.

        Raises:
            WaitTimeout: The rollback does not reach the state in time.
        """
        last: RollbackState | None = None

        async def reached() -> bool:
            nonlocal last
            try:
                last = (await self.ingress.call(rollback_status, key=trip_id)).status
            except IngressError as error:
                if error.code != NotFound.code:
                    raise
            return last is state

        await eventually(
            reached, what=lambda: f"rollback of trip {trip_id} that is {state}; it is {last}", within=_WITHIN
        )

    @asynccontextmanager
    async def hotel_repaired(self, name: str) -> AsyncIterator[None]:
        """Remove a hotel's fault from the demo data for the duration of the context.

        Args:
            name: The hotel.
        """
        where = HotelRow.name == name
        async with self._databases["hotels"].transaction() as connection:
            fault = (await connection.execute(select(HotelRow.fails_cancellations).where(where))).scalar_one()
            await connection.execute(update(HotelRow).where(where).values(fails_cancellations=0))
        try:
            yield
        finally:
            async with self._databases["hotels"].transaction() as connection:
                await connection.execute(update(HotelRow).where(where).values(fails_cancellations=fault))

    async def until_quiet(self) -> None:
        """Wait until all notifications are sent. Trips send them without waiting, so they may outlast the trip.

        Raises:
            WaitTimeout: A notification is still pending at the end of the time limit.
        """
        pending = (
            "select id from sys_invocation_status where target_service_name = 'Notifications' and status != 'completed'"
        )
        async with AdminClient(self.platform.topology.admin_url) as admin:

            async def all_sent() -> bool:
                return not await admin.query(pending)

            await eventually(all_sent, what="end of the notifications", within=_WITHIN)

    async def until_notified(self, trip_id: str) -> None:
        """Wait until a trip's traveller is notified, and all other notifications are sent.

        The engine lists a one-way call only after it has reached the partition of its target.

        Args:
            trip_id: The trip.

        Raises:
            WaitTimeout: The notification is missing, or another one is still pending, at the end of the time limit.
        """

        async def notified() -> bool:
            return bool((await self.trip(trip_id)).told)

        await eventually(notified, what=f"notification of trip {trip_id}", within=_WITHIN)
        await self.until_quiet()

    async def audit(self) -> str:
        """Audit the platform after the end of all trips: ``holds``, or the names of violated invariants."""
        await self.until_quiet()
        platform = self.platform
        report = await audit_platform(platform.topology, platform.environment, platform.codec, settled=True)
        if report.remarks:
            return "; ".join(report.remarks)
        broken = [invariant.name for invariant in report.invariants if not invariant.ok]
        return f"broken: {', '.join(broken)}" if broken else "holds"


async def answer(call: Awaitable[Any]) -> str:
    """Describe a booking's outcome.

    Args:
        call: The booking.

    Raises:
        IngressError: The response did not come from the engine.
    """
    try:
        await call
    except IngressError as error:
        if error.source is None:
            raise
        return describe_refusal(error)
    return "confirmed"


def describe_refusal(error: IngressError) -> str:
    """Describe a refusal, for example ``409 seats_sold_out at flight, rolled_back``.

    Args:
        error: The ingress's response.
    """
    code = error.code or error.message
    step = f" at {error.metadata['step']}" if "step" in error.metadata else ""
    rollback = f", {error.metadata['rollback']}" if "rollback" in error.metadata else ""
    return f"{error.status_code} {code}{step}{rollback}"


def describe_holdings(trip: Trip) -> str:
    """Describe a trip's reservations and charges.

    Args:
        trip: The trip.
    """
    if not any(trip.holdings):
        return "nothing"
    return f"seat sets: {trip.seat_sets}, rooms: {trip.rooms}, charges: {trip.charges}"


def describe_notifications(trip: Trip) -> str:
    """Describe the notifications of a trip's traveller.

    Args:
        trip: The trip.
    """
    return ", ".join(kind if count == 1 else f"{count} times {kind}" for kind, count in sorted(trip.told.items())) or (
        "nothing"
    )
