"""The ledger of chaos runs finds each contradiction between answers and state, and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.trips import TripConfirmation
from tests.system.chaos.ledger import Entry, Ledger, Observed, answer_times, judge


@dataclass
class World:
    """A platform without faults, and what its clients saw."""

    entries: list[Entry] = field(default_factory=list)
    invocations: dict[str, Any] = field(default_factory=dict)
    holdings: dict[str, frozenset[str]] = field(default_factory=dict)
    notices: dict[str, list[str]] = field(default_factory=dict)

    def problems(self) -> list[str]:
        return judge(self.entries, Observed(self.invocations, self.holdings, self.notices))

    def add(self, event: str, trip: str, **fields: Any) -> None:
        self.entries.append(Entry(at=len(self.entries), event=event, trip=trip, **fields))

    def submit(self, trip: str, answers: list[str]) -> None:
        for answer in answers:
            self.add("sent", trip, request="submit")
            if answer == "accepted":
                self.add("answered", trip, request="submit", answer=answer, invocation=f"inv-{trip}")
            elif answer != "lost":
                self.add("answered", trip, request="submit", answer=answer)

    def end(self, trip: str, outcome: str, answers: int = 1) -> None:
        self.invocations[trip] = (f"inv-{trip}", "success" if outcome == "confirmed" else "failure")
        ids = tuple(f"{kind}-{trip}" for kind in ("seat", "room", "charge")) if outcome == "confirmed" else ()
        if ids:
            self.holdings[trip] = frozenset(ids)
        self.notices[trip] = [f"trip-{outcome}"]
        for _ in range(answers):
            self.add("sent", trip, request="attach")
            self.add("answered", trip, request="attach", answer=outcome, reservations=ids)


failures = st.lists(st.sampled_from(["unknown", "not accepted", "lost"]), max_size=3)
outcomes = st.sampled_from(["confirmed", "refused"])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = World()
    for number in range(draw(st.integers(0, 5))):
        trip = f"t{number}"
        before = draw(failures)
        kind = draw(st.sampled_from(["answered", "unknown to its client", "never accepted"]))
        if kind == "answered":
            world.submit(trip, [*before, "accepted"])
            world.end(trip, draw(outcomes), draw(st.integers(1, 3)))
        elif kind == "unknown to its client":
            world.submit(trip, [*before, "unknown"])
            if draw(st.booleans()):
                world.end(trip, draw(outcomes), answers=0)
        else:
            world.submit(trip, ["not accepted"])
        world.add("fault", "")
    return world


@given(worlds())
def test_consistent_world_has_no_problem(world):
    assert world.problems() == []


def confirmed_world() -> World:
    world = World()
    world.submit("t", ["unknown", "accepted"])
    world.end("t", "confirmed", answers=2)
    return world


def refused_world() -> World:
    world = World()
    world.submit("t", ["accepted"])
    world.end("t", "refused")
    return world


def rejected_world() -> World:
    world = World()
    world.submit("t", ["not accepted"])
    return world


def lose_answers(world: World) -> None:
    world.entries = [entry for entry in world.entries if entry.request != "attach"]


def change_last_answer(world: World) -> None:
    world.entries[-1] = world.entries[-1].model_copy(update={"answer": "refused", "reservations": ()})


def accept_twice(world: World) -> None:
    world.submit("t", ["accepted"])
    world.entries[-1] = world.entries[-1].model_copy(update={"invocation": "inv-other"})


CONTRADICTIONS: Mapping[str, tuple[Callable[[], World], Callable[[World], object], str]] = {
    "lost seat": (confirmed_world, lambda w: w.holdings.update(t=frozenset({"room-t", "charge-t"})), "but holds"),
    "second room": (confirmed_world, lambda w: w.holdings.update(t=w.holdings["t"] | {"room-2"}), "but holds"),
    "other charge": (
        confirmed_world,
        lambda w: w.holdings.update(t=frozenset({"seat-t", "room-t", "charge-2"})),
        "but holds",
    ),
    "no notice": (confirmed_world, lambda w: w.notices.pop("t"), "was told nothing"),
    "two notices": (confirmed_world, lambda w: w.notices.update(t=["trip-confirmed"] * 2), "was told trip-confirmed"),
    "failed invocation": (
        confirmed_world,
        lambda w: w.invocations.update(t=("inv-t", "failure")),
        "its invocation ended with failure",
    ),
    "lost invocation": (confirmed_world, lambda w: w.invocations.pop("t"), "but the engine has None"),
    "running invocation": (confirmed_world, lambda w: w.invocations.update(t=("inv-t", None)), "has not ended"),
    "other invocation": (
        confirmed_world,
        lambda w: w.invocations.update(t=("inv-2", "success")),
        "but the engine has",
    ),
    "no answer": (confirmed_world, lose_answers, "never got an answer"),
    "two answers": (confirmed_world, change_last_answer, "got different answers"),
    "two acceptances": (confirmed_world, accept_twice, "accepted as 2 invocations"),
    "refused, but held": (refused_world, lambda w: w.holdings.update(t=frozenset({"seat-t"})), "but holds seat-t"),
    "refused, but told otherwise": (refused_world, lambda w: w.notices.update(t=["trip-confirmed"]), "told of a conf"),
    "rejected, but runs": (rejected_world, lambda w: w.invocations.update(t=("i", "success")), "but exists"),
    "rejected, but held": (rejected_world, lambda w: w.holdings.update(t=frozenset({"seat"})), "but exists"),
    "never ordered": (rejected_world, lambda w: w.notices.update(other=["trip-refused"]), "was never ordered"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_find_contradiction(name):
    make, damage, message = CONTRADICTIONS[name]
    world = make()
    assert world.problems() == []
    damage(world)
    assert any(message in problem for problem in world.problems()), world.problems()


def test_order_without_answer_may_exist():
    world = World()
    world.submit("t", ["not accepted", "lost"])
    world.end("t", "confirmed", answers=0)
    assert world.problems() == []


def test_file_has_every_entry(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.sent("t", "submit")
    ledger.accepted("t", "inv-t")
    ledger.fault("kill -9 flights")
    ledger.answered("t", "attach", "unknown", "0 None: the connection broke")
    ledger.confirmed(
        "t", TripConfirmation(trip_id="t", flight_reservation_id="f", hotel_reservation_id="h", payment_id="p")
    )
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()  # complete before the file is closed
    ledger.close()
    assert [Entry.model_validate_json(line) for line in lines] == ledger.entries
    assert (tmp_path / "ledger.jsonl").stat().st_mode & 0o077 == 0


def test_answer_times_begin_with_acceptance():
    entries = [
        Entry(at=1, event="sent", trip="t", request="submit"),
        Entry(at=3, event="answered", trip="t", request="submit", answer="accepted", invocation="i"),
        Entry(at=7.5, event="answered", trip="t", request="attach", answer="refused"),
        Entry(at=9, event="answered", trip="u", request="submit", answer="accepted", invocation="j"),
    ]
    assert answer_times(entries) == [(3, 4.5)]
