"""Timeline of a saga on a real engine."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest

from perdure import Orchestration, Target
from perdure.engine.admin import AdminClient
from perdure.errors import EngineError, IngressError, Refused
from perdure.saga.config import SagaConfig
from perdure.saga.timeline import Timeline, read_timeline
from tests.integration.saga_bench import Bench, Task, do_task, forget_runs, run_step, step


async def timeline(bench: Bench, key: str) -> Timeline:
    async with AdminClient(bench.admin_url) as admin:
        return await read_timeline(admin, bench.ingress, f"{bench.name}:{key}")


async def test_timeline_of_rolled_back_saga(bench):
    async def local(text: str) -> str:
        return text

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a", undo_fails=1)
        await cp.step("here", local, "x")
        await run_step(cp, "b", fails=-1)

    key, _ = await bench.run(main)
    saga = await timeline(bench, key)
    assert (saga.service, saga.key, saga.result) == (bench.name, key, "failure")
    assert [(each.step, each.plane, each.action, each.attempts, each.result) for each in saga.steps] == [
        ("a", "data", "Tasks/do", 1, "success"),
        ("here", "control", "run", 1, "success"),
        ("b", "data", "Tasks/do", 1, "failure"),
    ]
    assert [(each.undo, each.compensation_attempts) for each in saga.steps] == [
        ("undone", 1),
        ("skipped", 0),
        ("undone", 0),
    ]
    begins = [each.started_at for each in saga.steps]
    assert begins == sorted(begins)
    assert all(each.took is not None and each.took >= timedelta(0) for each in saga.steps)
    assert saga.ended_at is not None
    assert saga.started_at <= begins[0] <= saga.ended_at


async def test_distinguish_group_steps_and_attempts(bench):
    async def main(cp: Orchestration) -> None:
        await cp.parallel(step(cp, "x"), step(cp, "y"))
        cp.pivot()
        await cp.step("z", do_task, Task(key=cp.key, name="z", fails=2))

    key, _ = await bench.run(main)
    saga = await timeline(bench, key)
    assert [(each.step, each.attempts, each.result) for each in saga.steps] == [
        ("x", 1, "success"),
        ("y", 1, "success"),
        ("pivot", None, None),
        ("z", 3, "success"),
    ]
    assert saga.rollback is None


async def test_unknown_saga_is_reported(bench):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")

    await bench.run(main)
    with pytest.raises(EngineError, match="no saga '"):
        await timeline(bench, "unknown")


async def test_reused_key_shows_own_rollback(bench, did):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await run_step(cp, "b", fails=1)
        if did.count(f"done {cp.key}/b") > 1:
            raise Refused("enough", 410)

    key, _ = await bench.run(main)
    undos = []
    async with AdminClient(bench.admin_url) as admin:
        for _ in range(2):
            await forget_runs(admin, key)
            with suppress(IngressError):
                await bench.ingress.call(Target(bench.name, "run", None, object), key=key)
            undos.append([each.undo for each in (await timeline(bench, key)).steps])
    assert undos == [[None, None], ["undone", "undone"]]
    assert bench.undone(key) == ["undo b", "undo a"] * 2


@pytest.mark.restate_modes("http2")
async def test_find_rollback_by_workflow_key(bench):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a", undo_fails=-1)
        await run_step(cp, "b", fails=-1)

    key, _ = await bench.run(main)
    async with AdminClient(bench.admin_url) as admin:
        saga = await read_timeline(admin, bench.ingress, key)
    assert saga == await timeline(bench, key)
    assert saga.saga_id == f"{bench.name}:{key}"  # as in its dead letters
    assert [each.undo for each in saga.steps] == ["dead_letter", "undone"]


@pytest.mark.restate_modes("http2")
async def test_ambiguous_key_requires_service(bench):
    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")

    other = f"{bench.name}Too"
    key, _ = await bench.run(main, bench.orchestration(other, main, SagaConfig()))
    await bench.ingress.call(Target(other, "run", None, object), key=key)
    async with AdminClient(bench.admin_url) as admin:
        with pytest.raises(EngineError, match=f"several services have a saga '{key}': .* {bench.name}, {other}"):
            await read_timeline(admin, bench.ingress, key)
        for name in (bench.name, other):
            assert (await read_timeline(admin, bench.ingress, key, service=name)).service == name
