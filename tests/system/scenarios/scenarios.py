"""The scenarios: what is asked of the platform, what should come of it, and what does.

A scenario is played on a `Stage` with fresh seed data (`services.data_plane.seed`), each once. It returns facts, seen
through the ingress and in the database. To add one, write a function and list it in `SCENARIOS`.
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

from perdure.approvals.messages import DecisionRequest, WithdrawalRequest
from perdure.approvals.targets import approval_status, approve, reject, withdraw
from perdure.errors import IngressError
from perdure.idempotency import KEY_IS_USED_ONCE, KEY_REUSED
from services.contracts import trips
from services.contracts.trips import TripRequest
from services.runtime.booking import ORDINARY, new_trip_id
from tests.system.scenarios.dead_letters import unrepairable
from tests.system.scenarios.harness import Fact, HarnessError, Stage, describe_holdings, describe_told
from tests.system.scenarios.orders import order

Play: TypeAlias = Callable[[Stage], Awaitable[list[Fact]]]

ALL: Final = "seat sets: 1, rooms: 1, charges: 1"
NOTHING: Final = "nothing"

_TAKEN: Final = f"409 {KEY_REUSED}: {KEY_IS_USED_ONCE}. Attach with IngressClient.attach(handler, key=...)"
"""The engine's own answer to a trip id that was used before."""

_OPENS_WITHIN: Final = 20.0

_AT_ONCE: Final = 5.0
"""Seconds within which bad input is refused: a retry would take longer, and nothing that is not retried does."""


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Args:
        name: Short name, for machines.
        title: What happens in it.
        play: Plays it, and returns what was expected and what was observed.
    """

    name: str
    title: str
    play: Play


async def play(scenario: Scenario, stage: Stage) -> list[Fact]:
    """Play a scenario, and audit the database after it.

    Args:
        scenario: Which one.
        stage: Where.

    Returns:
        Its facts, and the audit's.
    """
    return [*await scenario.play(stage), Fact("audit", "holds", await stage.audit())]


def confirmed(what: TripRequest) -> Play:
    """Book a trip that is confirmed.

    Args:
        what: The order.
    """

    async def play_it(stage: Stage) -> list[Fact]:
        trip_id = new_trip_id()
        answered = await stage.book(trip_id, what)
        return [Fact("answer", "confirmed", answered), *await _aftermath(stage, trip_id, "completed")]

    return play_it


def refused(what: TripRequest, answered: str) -> Play:
    """Book a trip that is refused, and leaves nothing behind.

    Args:
        what: The order.
        answered: The answer.
    """

    async def play_it(stage: Stage) -> list[Fact]:
        trip_id, before = new_trip_id(), await stage.stock()
        return [
            Fact("answer", answered, await stage.book(trip_id, what)),
            *await _aftermath(stage, trip_id, "rolled_back"),
            Fact("stock", "as before", _difference(before, await stage.stock())),
        ]

    return play_it


async def the_same_trip_twice(stage: Stage) -> list[Fact]:
    """Send one trip id twice at the same time, and once more later."""
    trip_id = new_trip_id()
    both = sorted(await asyncio.gather(stage.book(trip_id, ORDINARY), stage.book(trip_id, ORDINARY)))
    later = await stage.book(trip_id, ORDINARY)
    first = await stage.ingress.attach(trips.book, key=trip_id)
    again = await stage.ingress.attach(trips.book, key=trip_id)
    return [
        Fact("answers at once", f"{_TAKEN} + confirmed", " + ".join(both)),
        Fact("answer later", _TAKEN, later),
        Fact("attached twice", "one confirmation", "one confirmation" if first == again else "two confirmations"),
        *await _aftermath(stage, trip_id, "completed"),
        Fact("charges ever made", "1", str(await stage.charges_ever(trip_id))),
    ]


async def the_last_seat(stage: Stage) -> list[Fact]:
    """Let two trips race for the last seat of a flight."""
    racers = [new_trip_id(), new_trip_id()]
    answers = await asyncio.gather(*(stage.book(trip_id, order(flight="PD001")) for trip_id in racers))
    held = sorted([describe_holdings(await stage.trip(trip_id)) for trip_id in racers])
    return [
        Fact("answers", "409 seats_sold_out at flight, rolled_back + confirmed", " + ".join(sorted(answers))),
        Fact("holdings", f"{NOTHING} + {ALL}", " + ".join(held)),
        Fact("seats left", "0", str((await stage.stock())["PD001"])),
    ]


async def fifty_at_once(stage: Stage) -> list[Fact]:
    """Book 50 trips at the same time, of five kinds; one kind wants more seats than there are."""
    kinds = (
        order(),
        order(flight="PD404"),
        order(hotel="Attic"),
        order(account="acct-declined"),
        order(flight="PD200", seats=30),  # 10 trips for 180 seats: six can fly
    )
    orders = {new_trip_id(): kinds[number % len(kinds)] for number in range(50)}
    answers = await asyncio.gather(*(stage.book(trip_id, what) for trip_id, what in orders.items()))
    held = Counter([describe_holdings(await stage.trip(trip_id)) for trip_id in orders])
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
        Fact("trips that hold all", "16", str(held[ALL])),
        Fact("trips that hold nothing", "34", str(held[NOTHING])),
    ]


async def orchestrator_killed(stage: Stage) -> list[Fact]:
    """Kill the orchestrator while a slow hotel is asked, and start it again."""
    trip_id, platform = new_trip_id(), stage.platform
    await stage.send(trip_id, order(hotel="Sloth"))
    await stage.until_step(trip_id, "hotel")
    before = platform.pid("orchestrator")
    await platform.kill("orchestrator")
    meanwhile = await _unfinished(stage, trip_id)
    await platform.restart("orchestrator")
    return [
        Fact("while it was down", "unfinished", meanwhile),
        Fact("process", "another", "the same" if platform.pid("orchestrator") == before else "another"),
        Fact("answer", "confirmed", await stage.result(trip_id)),
        *await _aftermath(stage, trip_id, "completed"),
        Fact("charges ever made", "1", str(await stage.charges_ever(trip_id))),
    ]


def over_the_limit(decision: Literal["approve", "reject"]) -> Play:
    """Book a trip that has to be approved, and decide.

    Args:
        decision: How.
    """

    async def play_it(stage: Stage) -> list[Fact]:
        trip_id, before = new_trip_id(), await stage.stock()
        await stage.send(trip_id, order(amount_minor=250_000))
        await stage.until_step(trip_id, "approval")
        waiting = describe_holdings(await stage.trip(trip_id))
        target = approve if decision == "approve" else reject
        await stage.ingress.call(target, DecisionRequest(actor="grace@example.com", reason="demo"), key=trip_id)
        answered = await stage.result(trip_id)
        facts = [Fact("while it waited", "seat sets: 1, rooms: 1, charges: 0", waiting)]
        if decision == "approve":
            return [*facts, Fact("answer", "confirmed", answered), *await _aftermath(stage, trip_id, "completed")]
        return [
            *facts,
            Fact("answer", "403 approval_rejected at approval, rolled_back", answered),
            *await _aftermath(stage, trip_id, "rolled_back"),
            Fact("stock", "as before", _difference(before, await stage.stock())),
        ]

    return play_it


async def withdrawn_by_the_traveller(stage: Stage) -> list[Fact]:
    """Book a trip that has to be approved, and withdraw it before anybody decides."""
    trip_id, before = new_trip_id(), await stage.stock()
    what = order(amount_minor=250_000)
    await stage.send(trip_id, what)
    await stage.until_step(trip_id, "approval")
    await _until_open(stage, trip_id)
    wish = WithdrawalRequest(actor=what.traveller, reason="demo")
    await stage.ingress.call(withdraw, wish, key=trip_id)
    try:
        await stage.ingress.call(approve, DecisionRequest(actor="grace@example.com"), key=trip_id)
        late = "taken"
    except IngressError as error:
        late = f"{error.status_code} {error.code}, {error.metadata.get('outcome')}"
    return [
        Fact("answer", "409 approval_withdrawn, rolled_back", await stage.result(trip_id)),
        Fact("a decision after it", "409 too_late, withdrawn", late),
        *await _aftermath(stage, trip_id, "rolled_back"),
        Fact("stock", "as before", _difference(before, await stage.stock())),
    ]


async def _until_open(stage: Stage, trip_id: str) -> None:
    """Wait until a trip's approval is open: it is sent, not called, so the trip is in that step a little before."""
    give_up = time.monotonic() + _OPENS_WITHIN
    while True:
        try:
            await stage.ingress.call(approval_status, key=trip_id)
        except IngressError as error:
            if error.status_code != 404:
                raise
        else:
            return
        if time.monotonic() > give_up:
            raise HarnessError(f"the approval of trip {trip_id} was not opened within {_OPENS_WITHIN:.0f} s")
        await asyncio.sleep(0.02)


@dataclass(frozen=True)
class BadInput:
    """An order that is refused at once.

    Args:
        what: What is wrong with it.
        status: The HTTP status of the answer.
        field: The field that the answer names.
        body: The order: a change to the ordinary one, or the bytes to send.
        trip_id: The trip's id, None for a new one.
    """

    what: str
    status: int
    field: str
    body: dict[str, Any] | bytes
    trip_id: str | None = None

    def bytes(self) -> bytes:
        """Return what to send."""
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
    BadInput("unknown account", 404, "payment.account", {"payment": {"account": "acct-nobody"}}),
)


async def bad_input(stage: Stage) -> list[Fact]:
    """Send orders that nobody can fulfil."""
    before = await stage.stock()
    facts = [await _refuses(stage, case) for case in BAD_INPUTS]
    return [*facts, Fact("stock", "as before", _difference(before, await stage.stock()))]


async def _refuses(stage: Stage, case: BadInput) -> Fact:
    trip_id, began = case.trip_id or new_trip_id(), time.monotonic()
    response = await stage.post(trip_id, case.bytes())
    seconds = time.monotonic() - began
    trip = await stage.trip(trip_id)
    expected = f"{case.status} names {case.field}, at once, holds {NOTHING}"
    names = f"names {case.field}" if case.field in _message(response) else f"says: {_message(response)[:200]}"
    soon = "at once" if seconds < _AT_ONCE else f"after {seconds:.1f} s"
    return Fact(case.what, expected, f"{response.status_code} {names}, {soon}, holds {describe_holdings(trip)}")


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text


async def _unfinished(stage: Stage, trip_id: str) -> str:
    try:
        await stage.ingress.output(trips.book, key=trip_id)
    except IngressError as error:
        if error.status_code == 470:
            return "unfinished"
        return f"{error.status_code} {error.message}"
    return "finished"


async def _aftermath(stage: Stage, trip_id: str, phase: Literal["completed", "rolled_back"]) -> list[Fact]:
    """Return how a trip that has ended looks in its status and in the database."""
    await stage.until_quiet()
    trip, good = await stage.trip(trip_id), phase == "completed"
    return [
        Fact("status", phase, (await stage.status(trip_id)).phase),
        Fact("holds", ALL if good else NOTHING, describe_holdings(trip)),
        Fact("told", "trip-confirmed" if good else "trip-refused", describe_told(trip)),
    ]


def _difference(before: dict[str, int], after: dict[str, int]) -> str:
    changed = [f"{name}: {before[name]} → {after[name]}" for name in before if before[name] != after[name]]
    return ", ".join(changed) or "as before"


SCENARIOS: Final = (
    Scenario("confirmed", "a trip is confirmed", confirmed(ORDINARY)),
    Scenario(
        "no-seats",
        "no seats are left",
        refused(order(flight="PD404"), "409 seats_sold_out at flight, rolled_back"),
    ),
    Scenario(
        "hotel-full",
        "the hotel is full, after the flight was reserved",
        refused(order(hotel="Attic"), "409 hotel_full at hotel, rolled_back"),
    ),
    Scenario(
        "card-declined",
        "the card is declined, after flight and hotel were reserved",
        refused(order(account="acct-declined"), "402 card_declined at payment, rolled_back"),
    ),
    Scenario("same-trip-twice", "the same trip id is sent twice", the_same_trip_twice),
    Scenario("last-seat", "two trips race for the last seat", the_last_seat),
    Scenario("fifty-at-once", "50 trips at once", fifty_at_once),
    Scenario("orchestrator-killed", "kill -9 of the orchestrator in the middle of a trip", orchestrator_killed),
    Scenario("approved", "a trip over the limit is approved", over_the_limit("approve")),
    Scenario("rejected", "a trip over the limit is rejected", over_the_limit("reject")),
    Scenario("withdrawn", "a trip over the limit is withdrawn by its traveller", withdrawn_by_the_traveller),
    Scenario("dead-letter", "the hotel can't be cancelled, then it is repaired", unrepairable("declined")),
    Scenario("dead-letter-cancel", "the same, after a cancel", unrepairable("cancelled")),
    Scenario("dead-letter-kill", "the same, after the orchestration was killed", unrepairable("killed")),
    Scenario("bad-input", "orders that nobody can fulfil", bad_input),
)
"""Every scenario, in the order of playing."""
