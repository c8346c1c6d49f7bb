"""Held steps: forged completions, killed calls, races with the deadline, and values that cannot be stored or read."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import pytest
from pydantic import AfterValidator

from perdure import Hold, Orchestration
from perdure._runtime.invocation_ids import signal_id
from perdure.determinism import Time
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, Refused
from perdure.saga import held_steps
from perdure.saga.held_step_messages import HeldStepAction
from tests.integration.saga_bench import run_step
from tests.integration.test_forged_completions import FIRST, complete
from tests.integration.test_held_steps import HOUR, Holds, held
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")


@pytest.fixture
async def holds(bench) -> Holds:
    found = Holds(bench)
    await bench.serve(found.main)
    return found


async def test_forged_completions_end_no_hold(holds, restate):
    async def main(cp: Orchestration) -> Any:
        return await cp.parallel(held(cp, "hotel", fails=1))

    key = await holds.start(main)
    found = await holds.held(key, "hotel")
    for number in range(FIRST, FIRST + 10):
        await complete(restate.server.ingress, signal_id(found.invocation, number))

    async def woken() -> bool:
        async with AdminClient(restate.server.admin) as admin:
            rows = await admin.query(
                "select count(1) as n from sys_invocation_status where target_handler_name = 'outcome' "
                f"and target_service_key = {sql_text(found.saga_id)} and status = 'completed'"
            )
        return rows[0]["n"] >= 2

    await eventually(woken, what="two wake-ups")
    assert (await holds.held(key, "hotel")).since == found.since
    await holds.act(found, HeldStepAction.RETRY)
    assert await holds.result(key) == ["HOTEL"]


async def test_killed_hold_is_repeated(holds, restate, monkeypatch):
    fails = threading.Event()
    fails.set()

    class BrokenClock(Time):
        async def now(self) -> datetime:
            if fails.is_set():
                raise OSError("the clock is broken")
            return await super().now()

    monkeypatch.setattr(held_steps, "Time", BrokenClock)

    async def main(cp: Orchestration) -> Any:
        return await cp.parallel(held(cp, "hotel", fails=1))

    key = await holds.start(main)
    async with AdminClient(restate.server.admin) as admin:

        async def kill() -> bool:
            rows = await admin.query(
                "select id from sys_invocation_status where target_handler_name = 'hold' and status != 'completed' "
                f"and target_service_key = {sql_text(f'{holds.bench.name}:{key}')}"
            )
            for row in rows:
                await admin.control_invocation(row["id"], "kill")
            return bool(rows)

        await eventually(kill, what="call that holds the step")
    fails.clear()
    await holds.act(await holds.held(key, "hotel"), HeldStepAction.RETRY)
    assert await holds.result(key) == ["HOTEL"]


async def test_action_and_deadline_agree(holds):
    limit = timedelta(seconds=2)

    async def main(cp: Orchestration) -> Any:
        return await cp.parallel(held(cp, "hotel", Hold(limit), fails=-1))

    keys = [await holds.start(main) for _ in range(12)]

    async def act_late(key: str, late: float) -> bool:
        """Act around the deadline; return whether the action was accepted."""
        step = await holds.held(key, "hotel")
        await asyncio.sleep((step.until - datetime.now(UTC)).total_seconds() + late)
        try:
            await holds.act(step, HeldStepAction.COMPLETE, result="by phone")
        except IngressError as error:
            if not error.message.endswith("is not held any longer"):
                raise
            return False
        return True

    accepted = await asyncio.gather(*(act_late(key, (number - 6) / 10) for number, key in enumerate(keys)))
    assert set(accepted) == {True, False}
    for key, is_accepted in zip(keys, accepted, strict=True):
        result = await holds.result(key)
        assert (result == ["by phone"]) is is_accepted, result
        assert await holds.gone(key)


def explode(value: int) -> int:
    if value == 13:
        raise OSError("thirteen")
    return value


@dataclass
class Text:
    text: str


async def test_odd_values_neither_hang_nor_crash(holds):
    async def odd(_: Text) -> Annotated[int, AfterValidator(explode)]:
        raise Refused("odd", 422)

    async def invalid(cp: Orchestration) -> Any:
        return await cp.step("odd", odd, Text("short"), on_failure=Hold(HOUR))

    async def large(cp: Orchestration) -> Any:
        await run_step(cp, "flight")
        return await cp.step("large", odd, Text("x" * 40_000_000), on_failure=Hold(HOUR))

    key = await holds.start(invalid)
    await holds.act(await holds.held(key, "odd"), HeldStepAction.COMPLETE, result=13)
    again = await holds.held(key, "odd", times=2)
    assert "the value of the last complete was refused" in again.error
    await holds.act(again, HeldStepAction.COMPLETE, result=12)
    assert await holds.result(key) == 12
    key = await holds.start(large)  # cannot be stored, so it is not held
    assert (await holds.result(key)).message == "step 'large' failed: odd"
    assert holds.bench.undone(key) == ["undo flight"]


async def test_reused_key_replaces_orphaned_hold(holds, restate):
    async def main(cp: Orchestration) -> Any:
        return await cp.parallel(held(cp, "hotel", fails=2))

    key = str(uuid4())
    holds.mains[key] = main
    await holds.ingress.send(holds.run, key=key)
    first = await holds.held(key, "hotel")
    async with AdminClient(restate.server.admin) as admin:
        await admin.control_invocation(first.invocation, "kill")

        async def purged() -> bool:
            rows = await admin.query(f"select status from sys_invocation where id = {sql_text(first.invocation)}")
            if rows and rows[0]["status"] == "completed":
                await admin.control_invocation(first.invocation, "purge")
            return not rows

        await eventually(purged, what="purge")
    await holds.ingress.send(holds.run, key=key)

    async def held_anew() -> bool:
        (step,) = await holds.listed(key)
        return step.since > first.since

    await eventually(held_anew, what="hold of the second execution")
    (second,) = await holds.listed(key)
    await holds.act(second, HeldStepAction.RETRY)
    assert await holds.result(key) == ["HOTEL"]
    assert await holds.gone(key)
