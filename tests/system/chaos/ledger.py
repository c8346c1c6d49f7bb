"""Ledger of a chaos run: every request and every answer, compared with the state of the platform at the end.

The file is append-only, with a JSON object per line, so that it survives a crash of the run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from perdure.security.private_files import open_private
from services.contracts.trips import TripConfirmation

Request: TypeAlias = Literal["submit", "attach"]

Answer: TypeAlias = Literal["accepted", "not accepted", "confirmed", "refused", "unknown"]
"""What an answer says. ``unknown``: there was no answer, or one that says nothing about the trip."""

_FINAL: Final = ("confirmed", "refused")


class Entry(BaseModel):
    """A line of the ledger.

    Args:
        at: Seconds since the start of the run.
        event: A request was sent, an answer arrived, or something happened to the platform.
        trip: The trip; empty for a fault.
        request: Kind of the request; None for a fault.
        answer: What the answer says; None for a request.
        detail: Text of an answer, or the fault.
        invocation: Invocation ID of an accepted order.
        reservations: IDs of flight, hotel and payment in a confirmation.
    """

    model_config = ConfigDict(frozen=True)

    at: float
    event: Literal["sent", "answered", "fault"]
    trip: str = ""
    request: Request | None = None
    answer: Answer | None = None
    detail: str = ""
    invocation: str | None = None
    reservations: tuple[str, ...] = ()


class Ledger:
    """The ledger of a run, in memory and in a file.

    Args:
        path: The file, which must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._began = time.monotonic()
        self._file: IO[str] = open(path, "x", buffering=1, encoding="utf-8", opener=open_private)  # noqa: SIM115

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def sent(self, trip: str, request: Request) -> None:
        """Record a request, before it is sent."""
        self._add("sent", trip=trip, request=request)

    def accepted(self, trip: str, invocation: str) -> None:
        """Record the acceptance of an order."""
        self._add("answered", trip=trip, request="submit", answer="accepted", invocation=invocation)

    def confirmed(self, trip: str, answer: TripConfirmation) -> None:
        """Record the confirmation of a trip."""
        ids = (answer.flight_reservation_id, answer.hotel_reservation_id, answer.payment_id)
        self._add("answered", trip=trip, request="attach", answer="confirmed", reservations=ids)

    def answered(self, trip: str, request: Request, answer: Answer, detail: str) -> None:
        """Record any other answer, or its absence."""
        self._add("answered", trip=trip, request=request, answer=answer, detail=detail)

    def fault(self, detail: str) -> None:
        """Record a fault, or that it could not be applied."""
        self._add("fault", detail=detail)

    def _add(self, event: Literal["sent", "answered", "fault"], **fields: Any) -> None:
        entry = Entry(at=round(time.monotonic() - self._began, 3), event=event, **fields)
        self._file.write(entry.model_dump_json(exclude_defaults=True) + "\n")
        self.entries.append(entry)


@dataclass(frozen=True)
class Observed:
    """State of the platform after the end of all work.

    Args:
        invocations: Invocation ID and result of each trip in the engine; None for a trip that has not ended.
        holdings: IDs of active reservations and charges of each trip in the database.
        notices: Kinds of the notifications about each trip.
    """

    invocations: Mapping[str, tuple[str, Literal["success", "failure"] | None]]
    holdings: Mapping[str, frozenset[str]]
    notices: Mapping[str, Sequence[str]]


@dataclass
class _Trip:
    """What the clients know about a trip."""

    asked: bool = False
    accepted: set[str] = field(default_factory=set)
    certainly_not: bool = True
    finals: list[Entry] = field(default_factory=list)


def judge(entries: Iterable[Entry], observed: Observed) -> list[str]:
    """Return the contradictions between answers and state.

    An accepted order has one invocation, which has ended. A confirmed trip holds what its answer names, and a refused
    one nothing. Repeated answers agree. An order that was refused before it was accepted does not exist, nor does a
    trip that was never ordered.

    Args:
        entries: The ledger.
        observed: The state.
    """
    trips = _trips(entries)
    problems = []
    for name, trip in sorted(trips.items()):
        problems += [f"trip {name} {problem}" for problem in _judge_trip(name, trip, observed)]
    known = {*observed.invocations, *observed.holdings, *observed.notices}
    return problems + [f"trip {name} exists, but was never ordered" for name in sorted(known - trips.keys())]


def answer_times(entries: Iterable[Entry]) -> list[tuple[float, float]]:
    """Return the first acceptance of each trip that has a final answer, and the seconds until that answer."""
    accepted: dict[str, float] = {}
    times = []
    for entry in entries:
        if entry.answer == "accepted":
            accepted.setdefault(entry.trip, entry.at)
        elif entry.answer in _FINAL and entry.trip in accepted:
            times.append((accepted[entry.trip], entry.at - accepted[entry.trip]))
    return times


def _trips(entries: Iterable[Entry]) -> dict[str, _Trip]:
    trips: dict[str, _Trip] = defaultdict(_Trip)
    # A request without an answer may have reached the engine.
    unanswered: dict[str, int] = defaultdict(int)
    for entry in entries:
        if entry.event == "fault":
            continue
        trip = trips[entry.trip]
        if entry.request == "submit":
            unanswered[entry.trip] += 1 if entry.event == "sent" else -1
            if entry.answer is not None and entry.answer != "not accepted":
                trip.certainly_not = False
        if entry.invocation is not None:
            trip.accepted.add(entry.invocation)
        if entry.answer in _FINAL:
            trip.finals.append(entry)
    for name, count in unanswered.items():
        if count:
            trips[name].certainly_not = False
    return trips


def _judge_trip(name: str, trip: _Trip, observed: Observed) -> list[str]:
    invocation = observed.invocations.get(name)
    holdings = observed.holdings.get(name, frozenset())
    notices = list(observed.notices.get(name, ()))
    problems = []
    if trip.certainly_not and (invocation or holdings or notices):
        problems.append("was not accepted, but exists")
    if len(trip.accepted) > 1:
        problems.append(f"was accepted as {len(trip.accepted)} invocations: {', '.join(sorted(trip.accepted))}")
    if trip.accepted and (invocation is None or invocation[0] not in trip.accepted):
        problems.append(f"was accepted as {min(trip.accepted)}, but the engine has {invocation}")
    if invocation is not None and invocation[1] is None:
        problems.append("has not ended")
    if trip.accepted and not trip.finals:
        problems.append("was accepted, but its client never got an answer")
    if len({(entry.answer, entry.reservations) for entry in trip.finals}) > 1:
        problems.append("got different answers: " + ", ".join(str(entry.answer) for entry in trip.finals))
    for final in trip.finals[:1]:
        problems += _judge_final(final, invocation, holdings, notices)
    return problems


def _judge_final(
    final: Entry, invocation: tuple[str, str | None] | None, holdings: frozenset[str], notices: list[str]
) -> list[str]:
    problems = []
    is_confirmed = final.answer == "confirmed"
    if holdings != frozenset(final.reservations):
        expected = ", ".join(final.reservations) or "nothing"
        problems.append(
            f"was {final.answer}, but holds {', '.join(sorted(holdings)) or 'nothing'} instead of {expected}"
        )
    if invocation is not None and (invocation[1] == "success") != is_confirmed:
        problems.append(f"was {final.answer}, but its invocation ended with {invocation[1]}")
    if is_confirmed and notices != ["trip-confirmed"]:
        problems.append(f"was confirmed, but its traveller was told {', '.join(notices) or 'nothing'}")
    if not is_confirmed and "trip-confirmed" in notices:
        problems.append(f"was refused ({final.detail}), but its traveller was told of a confirmation")
    return problems
