from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy import event, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from perdure.errors import ConfigurationError, Conflict, InvalidInput, PerdureTerminalError, Refused, error_code
from perdure.sql import IdempotencyTable
from tests.plugins.shop_database import OPERATIONS, STOCK

PROPERTY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

_serials = count(1)
_examples = count(1)


class Take(BaseModel):
    """Request to take one book."""

    payload: str = "a"
    note: str = ""


class Taken(BaseModel):
    """Result of a write; ``serial`` differs between executions."""

    serial: int


class Returned(BaseModel):
    """Result of a compensation."""

    outcome: Literal["returned", "voided"]
    serial: int = 0


async def move(connection: AsyncConnection, books: int) -> None:
    await connection.execute(update(STOCK).values(taken=STOCK.c.taken + books))


@dataclass
class Shop:
    """Business logic with a countable effect: each write takes one book."""

    engine: AsyncEngine
    operations: IdempotencyTable = field(default=OPERATIONS)

    async def take(self, key: str = "k", payload: str = "a", *, refused: bool = False, subject: str = "") -> Taken:
        async with self.engine.begin() as connection:

            async def write() -> Taken:
                await move(connection, 1)
                if refused:
                    raise Refused("not today", 409, "refused_after_writing")
                return Taken(serial=next(_serials))

            request = Take(payload=payload)
            return await self.operations.perform(
                connection, key, write, action="take", request=request, result=Taken, subject=subject
            )

    async def give_back(self, key: str = "k", *, refused: bool = False, request: object = None) -> Returned:
        async with self.engine.begin() as connection:

            async def reverse(taken: Taken) -> Returned:
                await move(connection, -1)
                if refused:
                    raise Refused("not today", 503, "refused_after_writing")
                return Returned(outcome="returned", serial=taken.serial)

            voided = Returned(outcome="voided")
            return await self.operations.compensate(
                connection, key, reverse, action="take", request=request, performed=Taken, voided=voided
            )

    async def taken(self) -> int:
        async with self.engine.connect() as connection:
            return (await connection.execute(select(STOCK.c.taken))).scalar_one()

    async def state(self, key: str = "k") -> str | None:
        table = self.operations.table
        async with self.engine.connect() as connection:
            return (await connection.execute(select(table.c.state).where(table.c.key == key))).scalar_one_or_none()


@pytest.fixture
def shop(shop_engine: AsyncEngine) -> Shop:
    return Shop(shop_engine)


async def test_repeated_write_returns_recorded_result(shop: Shop) -> None:
    first = await shop.take()
    assert await shop.take() == first
    assert await shop.taken() == 1


async def test_reused_key_with_other_payload_conflicts(shop: Shop) -> None:
    await shop.take()
    with pytest.raises(Conflict, match="was used for a different take request"):
        await shop.take(payload="b")
    assert await shop.taken() == 1


async def test_key_belongs_to_one_action_and_subject(shop: Shop) -> None:
    await shop.take(subject="order-1")
    with pytest.raises(Conflict, match="belongs to 'order-1', not to 'order-2'"):
        await shop.take(subject="order-2")
    with pytest.raises(Conflict, match="belongs to 'order-1', not to ''"):
        await shop.give_back()
    assert await shop.state() == "performed"
    async with shop.engine.begin() as connection:
        with pytest.raises(Conflict, match="belongs to 'take', not to 'other'"):
            await shop.operations.perform(
                connection, "k", _must_not_run, action="other", request=Take(), result=Taken, subject="order-1"
            )


async def test_early_compensation_refuses_late_write(shop: Shop) -> None:
    assert await shop.give_back() == await shop.give_back() == Returned(outcome="voided")
    with pytest.raises(Conflict, match="was cancelled before its take arrived") as caught:
        await shop.take()
    assert error_code(caught.value) == "operation_voided"
    assert await shop.taken() == 0


async def test_compensated_write_cannot_run_again(shop: Shop) -> None:
    taken = await shop.take()
    assert await shop.give_back() == await shop.give_back() == Returned(outcome="returned", serial=taken.serial)
    with pytest.raises(Conflict, match="was compensated") as caught:
        await shop.take()
    assert error_code(caught.value) == "operation_compensated"
    with pytest.raises(Conflict, match="by a different request"):
        await shop.give_back(request="other")
    assert await shop.taken() == 0


async def test_failed_compensation_keeps_the_write(shop: Shop) -> None:
    await shop.take()
    with pytest.raises(Refused, match="not today"):
        await shop.give_back(refused=True)
    assert (await shop.state(), await shop.taken()) == ("performed", 1)
    assert (await shop.give_back()).outcome == "returned"


async def test_swallowed_failure_frees_the_key(shop: Shop) -> None:
    async def fail(*_: object) -> Any:
        raise Refused("not today")

    async with shop.engine.begin() as connection:
        with pytest.raises(Refused):
            await OPERATIONS.perform(connection, "k", fail, action="take", request=Take(), result=Taken)
    taken = await shop.take()
    async with shop.engine.begin() as connection:
        with pytest.raises(Refused):
            await OPERATIONS.compensate(
                connection, "k", fail, action="take", request=None, performed=Taken, voided=Returned(outcome="voided")
            )
    assert await shop.give_back() == Returned(outcome="returned", serial=taken.serial)


async def test_result_that_cannot_be_read_back_is_refused(shop: Shop) -> None:
    async def wrong() -> Any:
        return "no serial"

    with pytest.raises(PerdureTerminalError, match="the result of take"):
        async with shop.engine.begin() as connection:
            await OPERATIONS.perform(connection, "k", wrong, action="take", request=Take(), result=Taken)
    assert await shop.state() is None


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800"])
async def test_unusable_key_is_refused(shop: Shop, key: str) -> None:
    with pytest.raises(InvalidInput, match="idempotency key"):
        await shop.take(key)


async def test_autocommit_connection_is_refused(shop: Shop) -> None:
    async with shop.engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            await OPERATIONS.perform(connection, "k", _must_not_run, action="take", request=Take(), result=Taken)


async def test_sessions_share_the_key_with_connections(shop: Shop) -> None:
    first = await shop.take()
    async with AsyncSession(shop.engine) as session, session.begin():
        assert (
            await OPERATIONS.perform(session, "k", _must_not_run, action="take", request=Take(), result=Taken) == first
        )


async def test_synchronous_methods_follow_the_same_states(shop: Shop) -> None:
    def play(connection: Any) -> tuple[Taken, Taken, Returned, Returned]:
        def write() -> Taken:
            return Taken(serial=next(_serials))

        def reverse(taken: Taken) -> Returned:
            return Returned(outcome="returned", serial=taken.serial)

        first, again = (
            OPERATIONS.perform_sync(connection, "k", write, action="take", request=Take(), result=Taken)
            for _ in range(2)
        )
        voided = Returned(outcome="voided")
        back, early = (
            OPERATIONS.compensate_sync(
                connection, key, reverse, action="take", request=None, performed=Taken, voided=voided
            )
            for key in ("k", "other")
        )
        return first, again, back, early

    async with AsyncSession(shop.engine) as session, session.begin():
        first, again, back, early = await session.run_sync(play)
    assert first == again
    assert (back, early) == (Returned(outcome="returned", serial=first.serial), Returned(outcome="voided"))


async def test_purge_deletes_old_reversed_writes_only(shop: Shop) -> None:
    for key in ("old", "new", "performed"):
        await shop.take(key)
    for key in ("old", "new", "voided"):
        await shop.give_back(key)
    table = OPERATIONS.table
    async with shop.engine.begin() as connection:
        long_ago = datetime.now(UTC) - timedelta(days=31)
        await connection.execute(update(table).where(table.c.key != "new").values(created_at=long_ago))
        assert await OPERATIONS.purge(connection) == 0
        assert [await OPERATIONS.purge(connection, timedelta(days=30), limit=1) for _ in range(3)] == [1, 1, 0]
        with pytest.raises(ConfigurationError, match="at least 30 days"):
            await OPERATIONS.purge(connection, timedelta(days=29))
    left = {key: await shop.state(key) for key in ("old", "voided", "new", "performed")}
    assert left == {"old": None, "voided": None, "new": "compensated", "performed": "performed"}
    assert (await shop.give_back("performed")).outcome == "returned"


@dataclass
class Expected:
    """Expected state of one key."""

    state: str | None = None
    payload: str = ""
    result: Taken | None = None
    answer: Returned | None = None


@dataclass(frozen=True)
class Step:
    """A write, or a compensation if it has no payload. It crashes at its n-th statement."""

    key: str
    payload: str | None
    refused: bool
    crash_at: int | None


STEPS = st.builds(
    Step,
    key=st.sampled_from(["x", "y"]),
    payload=st.sampled_from(["a", "b", None]),
    refused=st.booleans(),
    crash_at=st.none() | st.integers(1, 5),
)


class Crash(Exception):
    """The process dies."""


@asynccontextmanager
async def crashing_at(engine: AsyncEngine, statement: int | None) -> AsyncIterator[None]:
    """End the connection without a commit at the n-th statement of the block."""
    seen = count(1)

    def crash(connection: Any, *_: object) -> None:
        if next(seen) == statement:
            if connection.dialect.name == "postgresql":  # aiosqlite would keep the thread of the connection
                connection.invalidate()
            raise Crash

    event.listen(engine.sync_engine, "before_cursor_execute", crash)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", crash)


@PROPERTY
@given(sequence=st.lists(STEPS, max_size=12))
async def test_sequences_with_crashes_match_model(shop: Shop, sequence: list[Step]) -> None:
    prefix = f"example-{next(_examples)}-"
    model: dict[str, Expected] = {}
    before = await shop.taken()
    for step in sequence:
        known = model.setdefault(step.key, Expected())
        try:
            async with crashing_at(shop.engine, step.crash_at):
                await _play(shop, prefix, step, known)
        except Crash:
            continue  # nothing may have changed
    for key, known in model.items():
        assert await shop.state(prefix + key) == known.state
    assert await shop.taken() - before == sum(known.state == "performed" for known in model.values())


async def _play(shop: Shop, prefix: str, step: Step, known: Expected) -> None:
    if step.payload is None:
        await _compensate(shop, prefix, step, known)
    else:
        await _write(shop, prefix, step, known, step.payload)


async def _write(shop: Shop, prefix: str, step: Step, known: Expected, payload: str) -> None:
    call = shop.take(prefix + step.key, payload, refused=step.refused)
    if known.state in ("voided", "compensated") or (known.state == "performed" and known.payload != payload):
        with pytest.raises(Conflict):
            await call
    elif known.state == "performed":
        assert await call == known.result
    elif step.refused:
        with pytest.raises(Refused):
            await call
    else:
        result = await call
        known.state, known.payload, known.result = "performed", payload, result


async def _compensate(shop: Shop, prefix: str, step: Step, known: Expected) -> None:
    call = shop.give_back(prefix + step.key, refused=step.refused)
    if known.state == "performed" and step.refused:
        with pytest.raises(Refused):
            await call
    elif known.state == "performed":
        answer = await call
        known.state, known.answer = "compensated", answer
        assert known.result is not None
        assert answer == Returned(outcome="returned", serial=known.result.serial)
    elif known.state is None:
        answer = await call
        known.state, known.answer = "voided", answer
        assert answer == Returned(outcome="voided")
    else:
        assert await call == known.answer


@PROPERTY
@given(compensations=st.lists(st.booleans(), min_size=2, max_size=10))
async def test_races_have_one_consistent_outcome(shop: Shop, compensations: list[bool]) -> None:
    before = await shop.taken()
    key = f"race-{next(_examples)}"
    answers = await asyncio.gather(
        *(_until_unlocked(shop, key, compensation=each) for each in compensations), return_exceptions=True
    )
    taken = [answer for answer in answers if isinstance(answer, Taken)]
    returned = [answer for answer in answers if isinstance(answer, Returned)]
    conflicts = [answer for answer in answers if isinstance(answer, Conflict)]
    assert len(taken) + len(returned) + len(conflicts) == len(compensations), answers
    assert len(returned) == sum(compensations)  # a compensation always succeeds
    assert len(set(map(str, taken))) <= 1  # all successful writes return the same result
    assert len(set(map(str, returned))) <= 1
    if returned:
        assert await shop.taken() == before
        assert bool(taken) <= (returned[0].outcome == "returned")
        with pytest.raises(Conflict):
            await shop.take(key)
    else:
        assert await shop.taken() - before == 1


async def _until_unlocked(shop: Shop, key: str, *, compensation: bool) -> Taken | Returned:
    """Repeat while SQLite is locked, as the engine does."""
    while True:
        try:
            return await (shop.give_back(key) if compensation else shop.take(key))
        except DBAPIError as error:
            if "locked" not in str(error):
                raise


async def _must_not_run() -> Taken:
    raise AssertionError("must not run")
