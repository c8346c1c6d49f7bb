from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.errors import Conflict, Refused, error_code
from services.contracts.messages import CompensationRequest, Message, Write
from services.data_plane import idempotency
from services.data_plane.database import Database
from services.data_plane.flights.tables import FlightRow
from services.data_plane.idempotency import IdempotencyTable, OperationRow
from services.data_plane.process import purge_regularly
from tests.support import eventually

PROPERTY = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

_serials = count(1)
_examples = count(1)


class Take(Write):
    """Request to take one seat."""

    payload: str = "a"
    note: str = ""


class Taken(Message):
    """Result of a write; ``serial`` differs between executions."""

    serial: int


class GivenBack(Message):
    """Result of a compensation."""

    outcome: Literal["compensated", "voided"]
    serial: int = 0


class Counter:
    """Business logic with a countable effect: each write takes one seat of PD100."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.operations = IdempotencyTable(database, "Counter")

    async def take(self, request: Take, *, refused: bool = False) -> Taken:
        async def business(connection: AsyncConnection) -> Taken:
            await self._add(connection, -1)
            if refused:
                raise Refused("not today", 409, "refused_after_writing")
            return Taken(serial=next(_serials))

        return await self.operations.perform("take", request, business, Taken)

    async def give_back(self, request: CompensationRequest, *, refused: bool = False) -> GivenBack:
        async def business(connection: AsyncConnection, taken: Taken) -> GivenBack:
            await self._add(connection, 1)
            if refused:
                raise Refused("not today", 503, "refused_after_writing")
            return GivenBack(outcome="compensated", serial=taken.serial)

        return await self.operations.compensate("take", request, business, Taken, GivenBack(outcome="voided"))

    async def taken(self) -> int:
        async with self.database.snapshot() as connection:
            query = select(FlightRow.seats - FlightRow.seats_left).where(FlightRow.number == "PD100")
            return (await connection.execute(query)).scalar_one()

    async def state(self, key: str) -> str | None:
        async with self.database.snapshot() as connection:
            return (
                await connection.execute(
                    select(OperationRow.state).where(OperationRow.service == "Counter", OperationRow.key == key)
                )
            ).scalar_one_or_none()

    @staticmethod
    async def _add(connection: AsyncConnection, seats: int) -> None:
        await connection.execute(
            update(FlightRow).where(FlightRow.number == "PD100").values(seats_left=FlightRow.seats_left + seats)
        )


@pytest.fixture
def counter(database: Database) -> Counter:
    return Counter(database)


@pytest.fixture
def second_counter(second_database: Database) -> Counter:
    return Counter(second_database)


def take(key: str = "k", **fields: str) -> Take:
    return Take(key=key, trip_id=fields.pop("trip_id", "T1"), **fields)


def undo(key: str = "k", trip_id: str = "T1") -> CompensationRequest:
    return CompensationRequest(key=key, trip_id=trip_id)


async def test_repeated_write_returns_stored_result(counter: Counter) -> None:
    first = await counter.take(take())
    assert await counter.take(take()) == first
    assert await counter.taken() == 1


async def test_reused_key_with_other_payload_conflicts(counter: Counter) -> None:
    await counter.take(take())
    with pytest.raises(Conflict, match="was used for a different"):
        await counter.take(take(payload="b"))
    assert await counter.taken() == 1


async def test_default_field_does_not_change_payload(counter: Counter) -> None:
    first = await counter.take(take())
    assert await counter.take(take(payload="a", note="")) == first


@pytest.mark.parametrize("request_", [take(trip_id="T2"), undo(trip_id="T2")], ids=["write", "undo"])
async def test_key_belongs_to_one_trip(counter: Counter, request_: Take | CompensationRequest) -> None:
    await counter.take(take())
    with pytest.raises(Conflict, match="belongs to trip 'T1', not to 'T2'"):
        await (counter.take(request_) if isinstance(request_, Take) else counter.give_back(request_))
    assert await counter.taken() == 1
    assert await counter.state("k") == "performed"


async def test_key_belongs_to_one_action(counter: Counter) -> None:
    async def other(_: AsyncConnection) -> Taken:
        raise AssertionError("must not run")

    await counter.take(take())
    with pytest.raises(Conflict, match="belongs to Counter/take, not to other"):
        await counter.operations.perform("other", take(), other, Taken)


async def test_keys_are_separate_per_service(counter: Counter, database: Database) -> None:
    async def other(_: AsyncConnection) -> Taken:
        return Taken(serial=99)

    await counter.take(take())
    assert await IdempotencyTable(database, "Other").perform("take", take(), other, Taken) == Taken(serial=99)


async def test_compensation_happens_once(counter: Counter) -> None:
    taken = await counter.take(take())
    answer = await counter.give_back(undo())
    assert answer == GivenBack(outcome="compensated", serial=taken.serial)
    assert await counter.give_back(undo()) == answer
    assert await counter.taken() == 0


async def test_early_compensation_rejects_late_write(counter: Counter) -> None:
    answer = await counter.give_back(undo())
    assert answer == GivenBack(outcome="voided")
    assert await counter.give_back(undo()) == answer
    with pytest.raises(Conflict, match="was cancelled before") as caught:
        await counter.take(take())
    assert error_code(caught.value) == "operation_voided"
    assert await counter.taken() == 0


async def test_write_after_compensation_is_refused(counter: Counter) -> None:
    await counter.take(take())
    await counter.give_back(undo())
    with pytest.raises(Conflict, match="was compensated") as caught:
        await counter.take(take())
    assert error_code(caught.value) == "operation_compensated"
    assert await counter.taken() == 0


async def test_refused_write_stores_nothing(counter: Counter) -> None:
    with pytest.raises(Refused, match="not today"):
        await counter.take(take(), refused=True)
    assert await counter.taken() == 0
    assert await counter.state("k") is None
    await counter.take(take(payload="b"))  # the key is free
    assert await counter.taken() == 1


async def test_failed_compensation_keeps_the_write(counter: Counter) -> None:
    await counter.take(take())
    with pytest.raises(Refused, match="not today"):
        await counter.give_back(undo(), refused=True)
    assert await counter.state("k") == "performed"
    assert await counter.taken() == 1
    assert (await counter.give_back(undo())).outcome == "compensated"


@dataclass
class Expected:
    """Expected state of one key."""

    state: str | None = None
    payload: str = ""
    result: Taken | None = None
    compensation_result: GivenBack | None = None


@dataclass(frozen=True)
class Step:
    """A write, or a compensation if it has no payload."""

    key: str
    payload: str | None
    refused: bool = False


steps = st.builds(
    Step, key=st.sampled_from(["x", "y"]), payload=st.sampled_from(["a", "b", None]), refused=st.booleans()
)


@dataclass
class Story:
    """Runs one example with unique keys."""

    counter: Counter
    prefix: str = field(default_factory=lambda: f"example-{next(_examples)}-")
    expected: dict[str, Expected] = field(default_factory=dict)

    async def play(self, step: Step) -> None:
        known = self.expected.setdefault(step.key, Expected())
        if step.payload is None:
            await self._undo(step, known)
        else:
            await self._write(step, known, step.payload)

    async def _write(self, step: Step, known: Expected, payload: str) -> None:
        call = self.counter.take(take(self.prefix + step.key, payload=payload), refused=step.refused)
        if known.state in ("voided", "compensated") or (known.state == "performed" and known.payload != payload):
            with pytest.raises(Conflict):
                await call
        elif known.state == "performed":
            assert await call == known.result
        elif step.refused:
            with pytest.raises(Refused):
                await call
        else:
            known.state, known.payload, known.result = "performed", payload, await call

    async def _undo(self, step: Step, known: Expected) -> None:
        call = self.counter.give_back(undo(self.prefix + step.key), refused=step.refused)
        if known.state == "performed" and step.refused:
            with pytest.raises(Refused):
                await call
        elif known.state == "performed":
            known.state, known.compensation_result = "compensated", await call
            assert known.result is not None
            assert known.compensation_result == GivenBack(outcome="compensated", serial=known.result.serial)
        elif known.state is None:
            known.state, known.compensation_result = "voided", await call
            assert known.compensation_result == GivenBack(outcome="voided")
        else:
            assert await call == known.compensation_result


@PROPERTY
@given(st.lists(steps, max_size=12))
async def test_sequences_match_reference_model(counter: Counter, sequence: list[Step]) -> None:
    before = await counter.taken()
    story = Story(counter)
    for step in sequence:
        await story.play(step)
    for key, known in story.expected.items():
        assert await counter.state(story.prefix + key) == known.state
    assert await counter.taken() - before == sum(known.state == "performed" for known in story.expected.values())


@PROPERTY
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=10))
async def test_races_have_one_consistent_outcome(
    counter: Counter, second_counter: Counter, requests: list[tuple[bool, bool]]
) -> None:
    """Concurrent writes and compensations of one key from two processes: (is compensation, is second process)."""
    before = await counter.taken()
    key = f"race-{next(_examples)}"
    calls: list[asyncio.Future[Taken | GivenBack]] = [
        asyncio.ensure_future(process.give_back(undo(key)) if is_undo else process.take(take(key)))
        for is_undo, second in requests
        for process in [second_counter if second else counter]
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    taken = [answer for answer in answers if isinstance(answer, Taken)]
    given_back = [answer for answer in answers if isinstance(answer, GivenBack)]
    conflicts = [answer for answer in answers if isinstance(answer, Conflict)]
    assert len(taken) + len(given_back) + len(conflicts) == len(requests), answers

    undos = sum(is_undo for is_undo, _ in requests)
    assert len(given_back) == undos  # a compensation always succeeds
    assert len(set(map(str, taken))) <= 1  # all successful writes return the same result
    assert len(set(map(str, given_back))) <= 1
    if undos:
        assert await counter.taken() == before
        assert await counter.state(key) == given_back[0].outcome
        assert bool(taken) <= (given_back[0].outcome == "compensated")
        with pytest.raises(Conflict):
            await second_counter.take(take(key))
    else:
        assert not conflicts
        assert await counter.taken() - before == 1
        assert await counter.state(key) == "performed"


async def test_purge_deletes_only_old_reversed_writes(counter: Counter) -> None:
    for key in ("performed", "compensated", "recent"):
        await counter.take(take(key))
    for key in ("compensated", "voided", "recent"):
        await counter.give_back(undo(key))
    async with counter.database.transaction() as connection:
        old = update(OperationRow).where(OperationRow.key != "recent")
        await connection.execute(old.values(created_at=datetime.now(UTC) - timedelta(days=91)))
    assert await counter.operations.purge(timedelta(days=92)) == 0
    assert await counter.operations.purge(timedelta(days=90)) == 2
    states = {key: await counter.state(key) for key in ("performed", "compensated", "voided", "recent")}
    assert states == {"performed": "performed", "compensated": None, "voided": None, "recent": "compensated"}
    await counter.give_back(undo("performed"))  # a dead letter may be redriven after months
    assert await counter.taken() == 0


async def test_purge_of_many_rows_takes_several_transactions(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "_PURGE_BATCH", 2)
    for number in range(5):
        await counter.give_back(undo(f"k{number}"))
    assert await counter.operations.purge(timedelta(days=-1)) == 5


async def test_purge_keeps_operations_of_other_services(counter: Counter, database: Database) -> None:
    await counter.give_back(undo("k"))
    assert await IdempotencyTable(database, "Other").purge(timedelta(days=-1)) == 0


async def test_purge_continues_after_database_outage(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    await counter.give_back(undo("k"))
    purge, attempts = counter.operations.purge, count(1)

    async def failing_first(retention: timedelta) -> int:
        if next(attempts) == 1:
            raise ConnectionRefusedError("the database is down")
        return await purge(retention)

    monkeypatch.setattr(counter.operations, "purge", failing_first)
    purging = asyncio.create_task(
        purge_regularly(counter.operations, timedelta(days=-1), interval=timedelta(milliseconds=1))
    )

    async def purged() -> bool:
        return await counter.state("k") is None

    await eventually(purged, what="purge")
    purging.cancel()
