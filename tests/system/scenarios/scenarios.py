"""The scenarios: requests to the platform, with expected and observed results.

Each scenario runs once on a `Harness` with fresh demo data (``services/data_plane/*/demo.py``) and returns facts from
the ingress and the databases. To add one, write a function and list it in `SCENARIOS`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import httpx

from perdure._runtime.engine_messages import WORKFLOW_STARTED
from perdure.approvals.messages import DecisionRequest, WithdrawalRequest
from perdure.approvals.targets import approve, reject, withdraw
from perdure.errors import IngressError
from perdure.idempotency import KEY_IS_USED_ONCE
from services.contracts import trips
from services.contracts.trips import TripRequest
from services.runtime.booking import ORDINARY, new_trip_id
from tests.system.scenarios.dead_letters import unrepairable
from tests.system.scenarios.harness import Fact, Harness, describe_holdings, describe_notifications
from tests.system.scenarios.orders import order

Play: TypeAlias = Callable[[Harness], Awaitable[list[Fact]]]

ALL: Final = "seat sets: 1, rooms: 1, charges: 1"
NOTHING: Final = "nothing"

_TAKEN: Final = f"409 {WORKFLOW_STARTED}: {KEY_IS_USED_ONCE}. Attach with IngressClient.attach(handler, key=...)"
"""Response to a reused trip ID."""

_AT_ONCE: Final = 5.0
"""Time limit in seconds for the refusal of bad input. Only a retried request would take longer."""


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Args:
        name: Short name, used as test ID.
        title: One-line description.
        play: Runs the scenario and returns its facts.
    """

    name: str
    title: str
    play: Play


async def play(scenario: Scenario, harness: Harness) -> list[Fact]:
    """Run a scenario, then audit the database.

    Args:
        scenario: The scenario.
        harness: The harness.

    Returns:
        Facts of the scenario and of the audit.
    """
    return [*await scenario.play(harness), Fact("audit", "holds", await harness.audit())]


def confirmed(what: TripRequest) -> Play:
    """Book a trip that is confirmed.

    Args:
        what: The order.
    """

    async def play_it(harness: Harness) -> list[Fact]:
        trip_id = new_trip_id()
        answered = await harness.book(trip_id, what)
        return [Fact("answer", "confirmed", answered), *await _aftermath(harness, trip_id, "completed")]

    return play_it


def refused(what: TripRequest, answered: str) -> Play:
    """Book a trip that is refused and keeps no reservation.

    Args:
        what: The order.
        answered: Expected response.
    """

    async def play_it(harness: Harness) -> list[Fact]:
        trip_id, before = new_trip_id(), await harness.stock()
        return [
            Fact("answer", answered, await harness.book(trip_id, what)),
            *await _aftermath(harness, trip_id, "rolled_back"),
            Fact("stock", "as before", _difference(before, await harness.stock())),
        ]

    return play_it


async def the_same_trip_twice(harness: Harness) -> list[Fact]:
    """Send one trip ID twice at the same time and once again later."""
    trip_id = new_trip_id()
    both = sorted(await asyncio.gather(harness.book(trip_id, ORDINARY), harness.book(trip_id, ORDINARY)))
    later = await harness.book(trip_id, ORDINARY)
    first = await harness.ingress.attach(trips.book, key=trip_id)
    again = await harness.ingress.attach(trips.book, key=trip_id)
    return [
        Fact("answers at once", f"{_TAKEN} + confirmed", " + ".join(both)),
        Fact("answer later", _TAKEN, later),
        Fact("attached twice", "one confirmation", "one confirmation" if first == again else "two confirmations"),
        *await _aftermath(harness, trip_id, "completed"),
        Fact("charges ever made", "1", str(await harness.charges_ever(trip_id))),
    ]


async def the_last_seat(harness: Harness) -> list[Fact]:
    """Book two trips concurrently for the last seat of a flight."""
    racers = [new_trip_id(), new_trip_id()]
    answers = await asyncio.gather(*(harness.book(trip_id, order(flight="PD001")) for trip_id in racers))
    held = sorted([describe_holdings(await harness.trip(trip_id)) for trip_id in racers])
    return [
        Fact("answers", "409 seats_sold_out at flight, rolled_back + confirmed", " + ".join(sorted(answers))),
        Fact("holdings", f"{NOTHING} + {ALL}", " + ".join(held)),
        Fact("seats left", "0", str((await harness.stock())["PD001"])),
    ]


async def fifty_at_once(harness: Harness) -> list[Fact]:
    """Book 50 trips of five kinds at the same time; one kind orders more seats than the flight has."""
    kinds = (
        order(),
        order(flight="PD404"),
        order(hotel="Attic"),
        order(account="acct-declined"),
        order(flight="PD200", seats=30),  # 10 trips for 180 seats: six can fly
    )
    orders = {new_trip_id(): kinds[number % len(kinds)] for number in range(50)}
    answers = await asyncio.gather(*(harness.book(trip_id, what) for trip_id, what in orders.items()))
    held = Counter([describe_holdings(await harness.trip(trip_id)) for trip_id in orders])
    counted = Counter(answers)
    expected = {
        "confirmed": 16,
        "409 seats_sold_out at flight, rolled_back": 14,
        "409 hotel_full at hotel, rolled_back": 10,
        "402 card_declined at payment, rolled_back": 10,
    }
    return [
        *(Fact(f"trips {what}", str(count), str(counted.pop(what, 0))) for what, count in expected.items()),
        Fact("other answers", "none", ", ".join(sorted(counted)) or "none"),
        Fact("complete trips", "16", str(held[ALL])),
        Fact("empty trips", "34", str(held[NOTHING])),
    ]


async def orchestrator_killed(harness: Harness) -> list[Fact]:
    """Kill the orchestrator during a slow hotel reservation, then restart it."""
    trip_id, platform = new_trip_id(), harness.platform
    await harness.send(trip_id, order(hotel="Sloth"))
    await harness.until_step(trip_id, "hotel")
    before = platform.pid("orchestrator")
    await platform.kill("orchestrator")
    meanwhile = await _unfinished(harness, trip_id)
    await platform.restart("orchestrator")
    return [
        Fact("result during the outage", "unfinished", meanwhile),
        Fact("process", "new", "the same" if platform.pid("orchestrator") == before else "new"),
        Fact("answer", "confirmed", await harness.result(trip_id)),
        *await _aftermath(harness, trip_id, "completed"),
        Fact("charges ever made", "1", str(await harness.charges_ever(trip_id))),
    ]


def over_the_limit(decision: Literal["approve", "reject"]) -> Play:
    """Book a trip over the approval limit and decide on it.

    Args:
        decision: The decision.
    """

    async def play_it(harness: Harness) -> list[Fact]:
        trip_id, before = new_trip_id(), await harness.stock()
        await harness.send(trip_id, order(amount_minor=250_000))
        await harness.until_step(trip_id, "approval")
        waiting = describe_holdings(await harness.trip(trip_id))
        target = approve if decision == "approve" else reject
        await harness.ingress.call(target, DecisionRequest(actor="grace@example.com", reason="demo"), key=trip_id)
        answered = await harness.result(trip_id)
        facts = [Fact("holds while waiting", "seat sets: 1, rooms: 1, charges: 0", waiting)]
        if decision == "approve":
            return [*facts, Fact("answer", "confirmed", answered), *await _aftermath(harness, trip_id, "completed")]
        return [
            *facts,
            Fact("answer", "403 approval_rejected at approval, rolled_back", answered),
            *await _aftermath(harness, trip_id, "rolled_back"),
            Fact("stock", "as before", _difference(before, await harness.stock())),
        ]

    return play_it


async def withdrawn_by_the_traveller(harness: Harness) -> list[Fact]:
    """Book a trip over the approval limit and withdraw it before the decision."""
    trip_id, before = new_trip_id(), await harness.stock()
    what = order(amount_minor=250_000)
    await harness.send(trip_id, what)
    await harness.until_step(trip_id, "approval")
    await harness.until_approval_is_open(trip_id)
    withdrawal = WithdrawalRequest(actor=what.traveller, reason="demo")
    await harness.ingress.call(withdraw, withdrawal, key=trip_id)
    try:
        await harness.ingress.call(approve, DecisionRequest(actor="grace@example.com"), key=trip_id)
        late = "accepted"
    except IngressError as error:
        late = f"{error.status_code} {error.code}, {error.metadata.get('outcome')}"
    return [
        Fact("answer", "409 approval_withdrawn, rolled_back", await harness.result(trip_id)),
        Fact("later decision", "409 too_late, withdrawn", late),
        *await _aftermath(harness, trip_id, "rolled_back"),
        Fact("stock", "as before", _difference(before, await harness.stock())),
    ]


@dataclass(frozen=True)
class BadInput:
    """An invalid order.

    Args:
        what: The error.
        status: HTTP status of the response.
        field: Field named by the response.
        body: Changes to the ordinary order, or the bytes to send.
        trip_id: Trip ID; None for a new one.
    """

    what: str
    status: int
    field: str
    body: dict[str, Any] | bytes
    trip_id: str | None = None

    def bytes(self) -> bytes:
        """Return the request body."""
        if isinstance(self.body, bytes):
            return self.body
        whole: dict[str, Any] = ORDINARY.model_dump(mode="json")
        for name, change in self.body.items():
            whole[name] = {**whole[name], **change} if isinstance(change, dict) else change
        return json.dumps(whole).encode()


BAD_INPUTS: Final = (
    BadInput("malformed JSON", 400, "JSON", b'{"traveller": "ada@example.com", '),
    BadInput("unknown field", 400, "colour", {"colour": "red"}),
    BadInput("unknown inner field", 400, "flight.colour", {"flight": {"colour": "red"}}),
    BadInput("negative amount", 400, "payment.amount_minor", {"payment": {"amount_minor": -1}}),
    BadInput("fractional amount", 400, "payment.amount_minor", {"payment": {"amount_minor": 1.5}}),
    BadInput("trip id of 10,000 characters", 400, "trip_id", {}, trip_id="x" * 10_000),
    BadInput("unknown flight", 404, "flight.number", {"flight": {"number": "PD999"}}),
    BadInput("unknown hotel", 404, "hotel.name", {"hotel": {"name": "Nowhere"}}),
    BadInput("unknown account", 404, "payment.account", {"payment": {"account": "acct-unknown"}}),
)


async def bad_input(harness: Harness) -> list[Fact]:
    """Send invalid orders."""
    before = await harness.stock()
    facts = [await _refuses(harness, case) for case in BAD_INPUTS]
    return [*facts, Fact("stock", "as before", _difference(before, await harness.stock()))]


async def _refuses(harness: Harness, case: BadInput) -> Fact:
    trip_id, began = case.trip_id or new_trip_id(), time.monotonic()
    response = await harness.post(trip_id, case.bytes())
    seconds = time.monotonic() - began
    trip = await harness.trip(trip_id)
    expected = f"{case.status} names {case.field}, at once, holds {NOTHING}"
    names = f"names {case.field}" if case.field in _message(response) else f"message: {_message(response)[:200]}"
    soon = "at once" if seconds < _AT_ONCE else f"after {seconds:.1f} s"
    return Fact(case.what, expected, f"{response.status_code} {names}, {soon}, holds {describe_holdings(trip)}")


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text


async def _unfinished(harness: Harness, trip_id: str) -> str:
    try:
        await harness.ingress.output(trips.book, key=trip_id)
    except IngressError as error:
        if error.status_code == 470:
            return "unfinished"
        return f"{error.status_code} {error.message}"
    return "finished"


async def _aftermath(harness: Harness, trip_id: str, phase: Literal["completed", "rolled_back"]) -> list[Fact]:
    """Return the facts of a trip's status and database rows after its end."""
    await harness.until_notified(trip_id)
    trip, good = await harness.trip(trip_id), phase == "completed"
    return [
        Fact("status", phase, (await harness.status(trip_id)).phase),
        Fact("holds", ALL if good else NOTHING, describe_holdings(trip)),
        Fact("notified", "trip-confirmed" if good else "trip-refused", describe_notifications(trip)),
    ]


def _difference(before: dict[str, int], after: dict[str, int]) -> str:
    changed = [f"{name}: {before[name]} → {after[name]}" for name in before if before[name] != after[name]]
    return ", ".join(changed) or "as before"


SCENARIOS: Final = (
    Scenario("confirmed", "a trip is confirmed", confirmed(ORDINARY)),
    Scenario(
        "no-seats",
        "the flight is sold out",
        refused(order(flight="PD404"), "409 seats_sold_out at flight, rolled_back"),
    ),
    Scenario(
        "hotel-full",
        "the hotel is full after the flight is reserved",
        refused(order(hotel="Attic"), "409 hotel_full at hotel, rolled_back"),
    ),
    Scenario(
        "card-declined",
        "the card is declined after flight and hotel are reserved",
        refused(order(account="acct-declined"), "402 card_declined at payment, rolled_back"),
    ),
    Scenario("same-trip-twice", "one trip ID is sent twice", the_same_trip_twice),
    Scenario("last-seat", "two trips race for the last seat", the_last_seat),
    Scenario("fifty-at-once", "50 trips at once", fifty_at_once),
    Scenario("orchestrator-killed", "the orchestrator is killed during a trip", orchestrator_killed),
    Scenario("approved", "a trip over the limit is approved", over_the_limit("approve")),
    Scenario("rejected", "a trip over the limit is rejected", over_the_limit("reject")),
    Scenario("withdrawn", "a trip over the limit is withdrawn by its traveller", withdrawn_by_the_traveller),
    Scenario("dead-letter", "the hotel cannot be cancelled until it is repaired", unrepairable("declined")),
    Scenario("dead-letter-cancel", "the same, after a cancel", unrepairable("cancelled")),
    Scenario("dead-letter-kill", "the same, after a kill of the orchestration", unrepairable("killed")),
    Scenario("bad-input", "invalid orders", bad_input),
)
"""All scenarios in order of execution."""
