"""A key that is used again after its retention: each run is rolled back, judged and answered for by itself."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import restate as sdk

from perdure import AdminClient, CompensationStrategy, Orchestration, SagaConfig, ServiceClient, StatusData, Target
from perdure.errors import IngressError, Refused
from perdure.saga import rollback
from perdure.saga.messages import (
    ActionReceipt,
    DeadLetterActionRequest,
    DeadLetterListRequest,
    DeadLetterPage,
    RollbackStatus,
    rollback_status,
)
from perdure.saga.status import RollbackState
from perdure.saga.timeline import Timeline, read_timeline
from tests.integration.saga_bench import QUICK, Bench, Task, do_task, forget_runs, truth, undo_task
from tests.integration.test_saga_kills import rollback_state
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")
Strategy = CompensationStrategy


class Jobs:
    """A service whose runs under one key are numbered by the test; what a run does is called by its number."""

    def __init__(self, bench: Bench, did: Recording, strategy: CompensationStrategy, **config: Any) -> None:
        self.bench, self.did = bench, did
        self.name, self.key = f"Again{uuid4().hex[:8]}", str(uuid4())
        self.number = 1
        self.fails_of_b = self.more_steps = 0
        self.mended = threading.Event()
        self.service = bench.orchestration(
            self.name, self.main, SagaConfig(**{**QUICK, "strategy": strategy, "max_attempts": 1, **config})
        )
        self.service.compensation("undo_once_mended")(self._undo_once_mended)

    async def _undo_once_mended(self, ctx: sdk.Context, task: Task) -> None:
        async def check() -> bool:
            self.did.add(f"try {task.key}/{task.name}")
            return self.mended.is_set()

        if not await ctx.run_typed("check", check):
            raise Refused(f"{task.name} can't be undone", 503)
        await ServiceClient(ctx, undo_task).call(task)

    def task(self, name: str, **more: Any) -> Task:
        return Task(key=self.key, name=f"{name}{self.number}", **more)

    async def main(self, cp: Orchestration) -> None:
        """Fail after its steps; the first run's step b can't be undone before it is mended."""
        await cp.add_compensation_step("undo", self.task("news"), step="news", after_others=True)
        await cp.step("a", do_task, self.task("a"), compensate="undo")
        undo_b = "undo_once_mended" if self.number == 1 else "undo"
        await cp.step("b", do_task, self.task("b", undo_fails=self.fails_of_b), compensate=undo_b)
        for each in range(self.more_steps if self.number == 1 else 0):
            await cp.step(f"more {each}", do_task, self.task(f"more {each}/"), compensate="undo")
        raise Refused("enough", 410)

    async def serve(self) -> None:
        async def nothing(cp: Orchestration) -> None:
            """Do nothing."""

        await self.bench.serve(nothing, self.service)

    @property
    def run(self) -> Target[None, object]:
        return Target(self.name, "run", type(None), object)

    async def fail(self) -> dict[str, str]:
        """Run it; return what is said of its rollback."""
        with pytest.raises(IngressError) as failed:
            await asyncio.wait_for(self.bench.ingress.call(self.run, key=self.key), 30)
        said = failed.value.metadata
        return {name: said[name] for name in ("rollback", "rollback_undone", "dead_letters") if name in said}

    async def next_run(self, admin: AdminClient) -> None:
        """Let the retention of a run be over."""
        await forget_runs(admin, self.key)
        self.number += 1

    def undone(self, number: int) -> list[str]:
        """Return what was undone of a run, in order."""
        entries = [each.removeprefix("undo ") for each in self.bench.undone(self.key)]
        return [each.removesuffix(str(number)) for each in entries if each.endswith(str(number))]

    async def tried(self, what: str) -> None:
        async def probe() -> bool:
            return what in self.did.of(self.key)

        await eventually(probe, what=what)

    async def rollback(self) -> RollbackStatus:
        return await self.bench.ingress.call(rollback_status, key=f"{self.name}:{self.key}")

    async def runs_are(self, *wanted: RollbackState) -> RollbackStatus:
        """Wait until the runs, from the first to the last, stand so."""

        async def probe() -> RollbackStatus | None:
            found = await self.rollback()
            stand = [*(each.status for each in found.earlier), found.status]
            return found if stand == list(wanted) else None

        return await eventually(probe, what=f"runs that are {wanted}")

    async def act(self, what: str, position: int) -> ActionReceipt:
        target = Target("DeadLetters", what, DeadLetterActionRequest, ActionReceipt)
        letter = f"{self.name}:{self.key}/{position}"
        return await self.bench.ingress.call(target, DeadLetterActionRequest(id=letter, actor="olga"))

    async def letters(self) -> list[str]:
        target = Target("DeadLetters", "list", DeadLetterListRequest, DeadLetterPage)
        found = await self.bench.ingress.call(target, DeadLetterListRequest(saga_id=f"{self.name}:{self.key}"))
        return [each.id.rpartition("/")[2] for each in found.items]


@pytest.fixture
async def admin(restate) -> AsyncIterator[AdminClient]:
    async with AdminClient(restate.server.admin) as admin:
        yield admin


async def end_first_run(jobs: Jobs, admin: AdminClient, strategy: CompensationStrategy) -> dict[str, str]:
    """Have the first run fail, and its orchestration end, whatever becomes of its rollback."""
    if strategy is not Strategy.FOREVER:
        return await jobs.fail()
    invocation = await jobs.bench.ingress.send(jobs.run, None, key=jobs.key)
    await jobs.tried("try b1")
    await admin.act(invocation, "cancel")  # it waits for the end of its rollback, which does not come
    return {"rollback": "running"}


# What the first run comes to when its step b can't be undone, what of it is undone then, and once b can be undone.
FIRST: dict[CompensationStrategy, tuple[str, list[str], list[str]]] = {
    Strategy.ALL: ("needs_attention", ["a"], ["a", "b", "news"]),
    Strategy.STOP: ("needs_attention", [], ["b", "a", "news"]),
    Strategy.COMPLETED: ("needs_attention", ["a"], ["a", "b", "news"]),
    Strategy.BEST_EFFORT: ("rolled_back", ["a"], ["a"]),
    Strategy.UNTIL_SUCCESS: ("needs_attention", ["a"], ["a", "b"]),
    Strategy.FOREVER: ("running", [], ["b", "a", "news"]),
}
SECOND = {strategy: ["b", "a", "news"] for strategy in Strategy} | {Strategy.UNTIL_SUCCESS: ["b"]}


@pytest.mark.parametrize("strategy", Strategy)
async def test_a_second_run_is_undone_and_answered_for_whatever_was_left_of_the_first(bench, did, admin, strategy):
    jobs = Jobs(bench, did, strategy)
    await jobs.serve()
    outcome, undone, undone_later = FIRST[strategy]
    assert (await end_first_run(jobs, admin, strategy))["rollback"] == outcome
    assert jobs.undone(1) == undone
    await jobs.next_run(admin)
    assert await jobs.fail() == {"rollback": "rolled_back", "rollback_undone": ",".join(SECOND[strategy])}
    assert jobs.undone(2) == SECOND[strategy]
    found = await jobs.rollback()
    assert ([each.status for each in found.earlier], found.status) == ([outcome], "rolled_back")
    assert {each.step: each.position for each in found.steps} == {"news": 4, "a": 5, "b": 6}
    assert [each.position for each in found.earlier[0].steps] == [1, 2, 3]
    jobs.mended.set()
    assert await jobs.letters() == (["3"] if outcome == "needs_attention" else [])
    if outcome == "needs_attention":
        await jobs.act("redrive", 3)
    found = await jobs.runs_are(RollbackState.ROLLED_BACK, RollbackState.ROLLED_BACK)
    assert jobs.undone(1) == undone_later
    assert jobs.undone(2) == SECOND[strategy]
    assert await jobs.letters() == []
    assert [(each.step, each.position) for each in found.audit_log] == [("b", 3)] * len(found.audit_log)


WITH_LETTERS = [strategy for strategy, (outcome, _, _) in FIRST.items() if outcome == "needs_attention"]


@pytest.mark.parametrize("strategy", WITH_LETTERS)
async def test_a_step_that_was_discarded_in_the_first_run_holds_up_nothing_of_the_second(bench, did, admin, strategy):
    jobs = Jobs(bench, did, strategy)
    await jobs.serve()
    await jobs.fail()
    await jobs.act("discard", 3)
    await jobs.runs_are(RollbackState.ROLLED_BACK)
    first = jobs.undone(1)
    await jobs.next_run(admin)
    assert await jobs.fail() == {"rollback": "rolled_back", "rollback_undone": ",".join(SECOND[strategy])}
    assert jobs.undone(2) == SECOND[strategy]
    assert jobs.undone(1) == first
    assert "news" not in first
    await jobs.runs_are(RollbackState.ROLLED_BACK, RollbackState.ROLLED_BACK)


async def test_a_letter_of_the_first_run_is_redriven_while_the_second_waits_for_its_next_attempt(bench, did, admin):
    wait = timedelta(seconds=4)
    jobs = Jobs(bench, did, Strategy.ALL, max_attempts=2, initial_delay=wait, max_delay=wait)
    await jobs.serve()
    await jobs.fail()
    await jobs.next_run(admin)
    jobs.fails_of_b = 1
    second = asyncio.create_task(jobs.fail())
    await jobs.tried("undo b2")
    jobs.mended.set()
    await jobs.act("redrive", 3)
    await jobs.runs_are(RollbackState.ROLLED_BACK, RollbackState.RUNNING)
    assert bench.undone(jobs.key)[-3:] == ["undo b2", "undo b1", "undo news1"]  # the redrive hurried nothing else
    assert await second == {"rollback": "rolled_back", "rollback_undone": "b,a,news"}
    assert jobs.undone(2) == ["b", "b", "a", "news"]


async def test_a_run_whose_rollback_has_not_begun_does_not_show_the_one_before(bench, did, admin, monkeypatch):
    jobs = Jobs(bench, did, Strategy.ALL)
    jobs.mended.set()
    await jobs.serve()
    assert (await jobs.fail())["rollback"] == "rolled_back"
    await jobs.next_run(admin)
    asked, go_on = threading.Event(), threading.Event()
    take = rollback.take

    async def held(*args: Any) -> Any:
        asked.set()
        await eventually(truth(go_on.is_set), what="leave to go on")
        return await take(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "take", held)
        failing = asyncio.create_task(jobs.fail())
        await eventually(truth(asked.is_set), what="request for a rollback")
        target = Target(jobs.name, "status", type(None), StatusData)
        status = await bench.ingress.call(target, key=jobs.key)
        go_on.set()
        assert (await failing)["rollback_undone"] == "b,a,news"
    assert (status.phase, status.is_complete) == ("compensating", False)
    assert status.metadata == {"rollback": "pending"}


async def test_what_is_shown_of_a_run_is_its_own(bench, did, admin):
    jobs = Jobs(bench, did, Strategy.ALL)
    jobs.more_steps = 2  # of the first run
    await jobs.serve()

    async def shown() -> tuple[Timeline, StatusData]:
        saga = await read_timeline(admin, bench.ingress, f"{jobs.name}:{jobs.key}")
        return saga, await bench.ingress.call(Target(jobs.name, "status", type(None), StatusData), key=jobs.key)

    await jobs.fail()
    saga, status = await shown()
    assert [each.undo for each in saga.steps] == ["pending", "undone", "dead_letter", "undone", "undone"]
    assert status.phase == "needs_attention"
    await jobs.next_run(admin)
    await jobs.fail()
    saga, status = await shown()
    assert [each.undo for each in saga.steps] == ["undone"] * 3
    assert saga.rollback is not None
    assert saga.rollback.status is RollbackState.ROLLED_BACK
    assert status.phase == "rolled_back"
    assert status.metadata["steps"] == {"news": "undone", "a": "undone", "b": "undone"}
    assert [each.state for each in saga.rollback.earlier[0].steps] == [
        "pending", "undone", "dead_letter", "undone", "undone",
    ]  # fmt: skip


@pytest.mark.restate_modes("http2")
async def test_runs_that_an_earlier_version_put_together_stay_together_and_later_ones_are_apart(bench, did, admin):
    jobs = Jobs(bench, did, Strategy.ALL)
    await jobs.serve()
    for _ in range(2):
        await jobs.fail()
        await jobs.next_run(admin)
    saga = f"{jobs.name}:{jobs.key}"
    state = {name: json.loads(bytes(value)) for name, value in (await rollback_state(admin, saga)).items()}
    for name, later in {"request": ("earlier",), "head": ("ended", "waits_for")}.items():
        state[name] = {field: value for field, value in state[name].items() if field not in later}
    async with httpx.AsyncClient() as http:
        new_state = {name: list(json.dumps(value).encode()) for name, value in state.items()}
        body = {"object_key": saga, "new_state": new_state}
        assert (await http.post(f"{bench.admin_url}/services/Rollbacks/state", json=body)).is_success

    async def together() -> RollbackStatus | None:
        found = await jobs.rollback()
        return None if found.earlier else found

    found = await eventually(together, what="state of an earlier version")
    assert (found.status, len(found.steps)) == ("needs_attention", 6)
    assert await jobs.fail() == {"rollback": "rolled_back", "rollback_undone": "b,a,news"}
    found = await jobs.rollback()
    assert [(each.status, len(each.steps)) for each in found.earlier] == [("needs_attention", 6)]
    assert [each.position for each in found.steps] == [7, 8, 9]
    jobs.mended.set()
    await jobs.act("redrive", 3)
    await jobs.runs_are(RollbackState.ROLLED_BACK, RollbackState.ROLLED_BACK)
    assert (jobs.undone(1), jobs.undone(3)) == (["a", "b", "news"], ["b", "a", "news"])
