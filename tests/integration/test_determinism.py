"""Replays return the same IDs, random numbers and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import DeterministicHelpers, IngressClient, Target, Time, handler, run_with_retry
from perdure.errors import IngressError
from perdure.testing.served import Mode
from tests.support import Recording

TICK = timedelta(milliseconds=1)


class Drawn(BaseModel):
    uuid: UUID
    integer: int
    floating: float
    choice: str
    now: datetime
    later: datetime
    since: timedelta
    until: timedelta


draw = Target("Draws", "draw", str, Drawn)
AGES_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR_AWAY = datetime(2120, 1, 1, tzinfo=UTC)


def draws(did: Recording) -> sdk.Service:
    service = sdk.Service("Draws")

    async def draw(ctx: sdk.Context, key: str) -> Drawn:
        helpers, clock = DeterministicHelpers(ctx), Time(ctx)
        drawn = Drawn(
            uuid=helpers.uuid(),
            integer=helpers.rand_int(0, 1_000_000_000),
            floating=helpers.rand_float(),
            choice=helpers.rand_choice([str(number) for number in range(1_000)]),
            now=await clock.now(),
            since=await clock.since(AGES_AGO),
            until=await clock.until(FAR_AWAY),
            later=await clock.now(),
        )
        did.add(f"{key} {drawn.model_dump_json()}")
        await ctx.sleep(TICK)
        await run_with_retry(ctx, "work", lambda: None)
        await ctx.sleep(TICK)
        did.add(f"{key} {drawn.model_dump_json()}")
        return drawn

    handler(service)(draw)
    return service


async def test_random_values_survive_replay(restate, did):
    env = await restate.serve(draws(did))
    key = str(uuid4())
    start = datetime.now(UTC)
    async with IngressClient(env.ingress) as ingress:
        drawn = await ingress.call(draw, key)
    entries = did.all()
    assert set(entries) == {f"{key} {drawn.model_dump_json()}"}
    if restate.mode is not Mode.HTTP2:
        assert len(entries) > 2, "the handler was not replayed"
    # The time survives a replay.
    assert start - timedelta(seconds=1) <= drawn.now <= drawn.later <= datetime.now(UTC) + timedelta(seconds=1)
    assert drawn.now.utcoffset() == timedelta(0)
    assert timedelta(0) <= drawn.since - (drawn.now - AGES_AGO) < timedelta(seconds=10)
    assert timedelta(0) <= (FAR_AWAY - drawn.now) - drawn.until < timedelta(seconds=10)
    assert drawn.uuid.version == 4


async def test_random_values_differ_between_invocations(restate, did):
    env = await restate.serve(draws(did))
    async with IngressClient(env.ingress) as ingress:
        one, two = await ingress.call(draw, "one"), await ingress.call(draw, "two")
    assert one.uuid != two.uuid
    assert (one.integer, one.floating) != (two.integer, two.floating)


class Ranges(BaseModel):
    small: list[int]
    nothing_between: list[int]
    floats: list[float]
    choices: list[str]


@pytest.mark.restate_modes("http2")
async def test_random_ranges_exclude_upper_end(restate):
    service = sdk.Service("Ranged")

    @handler(service)
    async def ranges(ctx: sdk.Context) -> Ranges:
        helpers = DeterministicHelpers(ctx)
        return Ranges(
            small=[helpers.rand_int(-1, 2) for _ in range(200)],
            nothing_between=[helpers.rand_int(5, 5), helpers.rand_int(5, 3)],
            floats=[helpers.rand_float() for _ in range(200)],
            choices=[helpers.rand_choice("abc") for _ in range(200)],
        )

    env = await restate.serve(service)
    async with IngressClient(env.ingress) as ingress:
        drawn = await ingress.call(ranges)
    assert set(drawn.small) == {-1, 0, 1}
    assert drawn.nothing_between == [5, 5]
    assert all(0.0 <= number < 1.0 for number in drawn.floats)
    assert len(set(drawn.floats)) > 100
    assert set(drawn.choices) == {"a", "b", "c"}


async def test_invalid_arguments_are_terminal(restate, did):
    service = sdk.Service("Refusals")

    @handler(service)
    async def choose(ctx: sdk.Context) -> str:
        did.add("choose")
        return DeterministicHelpers(ctx).rand_choice([])

    @handler(service)
    async def naive(ctx: sdk.Context) -> float:
        did.add("naive")
        return (await Time(ctx).since(datetime(2026, 1, 1))).total_seconds()  # noqa: DTZ001 - the error under test

    env = await restate.serve(service)
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError, match="cannot choose from an empty sequence") as empty:
            await ingress.call(choose)
        with pytest.raises(IngressError, match="2026-01-01T00:00:00 has no time zone") as no_zone:
            await ingress.call(naive)
    assert (empty.value.status_code, no_zone.value.status_code) == (400, 400)
    assert did.count("choose") == 1
    assert did.count("naive") == 1
