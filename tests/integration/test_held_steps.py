"""Held steps: operator actions, deadlines and cancels, on a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from perdure import Hold, IngressClient, Orchestration, StatusData, Target
from perdure.errors import IngressError, Refused
from perdure.saga.held_step_messages import (
    HeldStep,
    HeldStepAction,
    HeldStepActionRequest,
    HeldStepBulkRequest,
    HeldStepFilter,
    HeldStepListRequest,
    HeldStepReceipt,
    act_on_held_steps,
    held_step_action,
    list_held_steps,
    show_held_step,
)
from tests.integration.saga_bench import Bench, run_step, step
from tests.support import eventually

HOUR = timedelta(hours=1)


class Holds:
    """An orchestration whose steps are held, and the operator's view of them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.mains: dict[str, Callable[[Orchestration], Awaitable[Any]]] = {}

    async def main(self, cp: Orchestration) -> Any:
        return await self.mains[cp.key](cp)

    @property
    def ingress(self) -> IngressClient:
        return self.bench.ingress

    @property
    def run(self) -> Target[None, Any, str]:
        return Target(self.bench.name, "run", None, object)  # type: ignore[return-value]

    async def start(self, main: Callable[[Orchestration], Awaitable[Any]]) -> str:
        key = str(uuid4())
        self.mains[key] = main
        await self.ingress.send(self.run, key=key)
        return key

    async def result(self, key: str) -> Any:
        try:
            return await self.ingress.attach(self.run, key=key)
        except IngressError as error:
            return error

    async def listed(self, key: str) -> list[HeldStep]:
        wanted = HeldStepListRequest(saga_id=f"{self.bench.name}:{key}")
        return (await self.ingress.call(list_held_steps, wanted)).items

    async def held(self, key: str, step: str, times: int = 1) -> HeldStep:
        """Wait until a step is held, and return it."""

        async def found() -> HeldStep | None:
            steps = await self.listed(key)
            return next((each for each in steps if each.step == step and each.held == times), None)

        return await eventually(found, what=f"held step '{step}'")

    async def gone(self, key: str) -> bool:
        async def none() -> bool:
            return not await self.listed(key)

        return await eventually(none, what="end of the hold")

    async def act(self, held: HeldStep, action: HeldStepAction, **fields: Any) -> HeldStepReceipt:
        request = HeldStepActionRequest(id=held.id, actor="olga", reason="seen", **fields)
        return await self.ingress.call(held_step_action(action), request)


@pytest.fixture
async def holds(bench: Bench) -> AsyncIterator[Holds]:
    found = Holds(bench)
    await bench.serve(found.main)
    yield found


def held(cp: Orchestration, name: str, hold: Hold | None = None, **fields: Any) -> Any:
    return step(cp, name, on_failure=hold or Hold(HOUR), **fields)


async def test_retry_continues_held_saga(holds, did):
    async def main(cp: Orchestration) -> Any:
        await run_step(cp, "flight")
        await cp.parallel(held(cp, "hotel", fails=1))
        return await run_step(cp, "payment")

    key = await holds.start(main)
    found = await holds.held(key, "hotel")
    assert (found.kind, found.error, found.status_code) == ("held_step", "hotel is out of order", 503)
    assert (found.action, found.payload["name"]) == ("Tasks/do", "hotel")
    status = await holds.ingress.call(Target(holds.bench.name, "status", None, StatusData), key=key)
    assert status.phase == "running"
    assert status.metadata["held"]["hotel"]["id"] == found.id
    await holds.act(found, HeldStepAction.RETRY)
    assert await holds.result(key) == "PAYMENT"
    assert did.of(key) == [
        "do flight",
        "done flight",
        "do hotel",
        "do hotel",
        "done hotel",
        "do payment",
        "done payment",
    ]
    assert await holds.gone(key)
    detail = await holds.ingress.call(show_held_step, found.id)
    assert [(entry.actor, entry.action, entry.reason) for entry in detail.audit_log] == [("olga", "retry", "seen")]
    with pytest.raises(IngressError, match="is not held any longer"):
        await holds.act(found, HeldStepAction.ROLL_BACK)
