"""Requests to the saga service are repeated, but neither while it is down nor with all steps."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from perdure import IngressClient, Orchestration, SagaConfig, Target
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, Refused
from perdure.retry import RetryPolicy
from perdure.saga import hosting, submission
from perdure.serving import build_app
from perdure.testing.served import ServedApp
from tests.integration.saga_bench import QUICK, Bench, Task, do_task, undo_of
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

PADDING = "x" * 50_000


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "OUTCOME_POLLS", RetryPolicy(timedelta(milliseconds=100), max_attempts=None))


async def begins(admin: AdminClient, saga: str) -> list[int]:
    """Return the sizes of the requests that started or joined a saga's rollback."""
    rows = await admin.query(
        "select length(encode(j.raw, 'hex')) / 2 as size from sys_journal j "
        "join sys_invocation_status i on i.id = j.id "
        f"where i.target_service_name = 'Rollbacks' and i.target_handler_name = 'begin' "
        f"and i.target_service_key = {sql_text(saga)} and j.index = 0 order by i.created_at"
    )
    return [row["size"] for row in rows]


async def test_repeated_request_contains_no_steps(bench: Bench):
    async def main(cp: Orchestration) -> None:
        task = Task(key=cp.key, name=PADDING, undo_hangs=True)
        await cp.step("a", do_task, task, compensate=undo_of(cp, task))
        raise Refused("enough", 410)

    ingress = await bench.serve(main)
    key = str(uuid4())
    running = asyncio.create_task(ingress.call(Target(bench.name, "run", None, object), key=key))
    async with AdminClient(bench.admin_url) as admin:

        async def repeated() -> list[int] | None:
            sizes = await begins(admin, f"{bench.name}:{key}")
            return sizes if len(sizes) >= 5 else None

        first, *_, last = await eventually(repeated, what="repeated requests")
    bench.released.set()
    with pytest.raises(IngressError) as failed:
        await running
    assert failed.value.metadata["rollback_undone"] == "a"
    assert first > len(PADDING)
    assert last < 2_000


async def test_nothing_is_resent_while_saga_service_is_down(bench: Bench, restate: Any):
    async def main(cp: Orchestration) -> None:
        task = Task(key=cp.key, name=PADDING)
        await cp.step("a", do_task, task, compensate=undo_of(cp, task))
        raise Refused("enough", 410)

    tasks, jobs, *_ = bench.services(main, SagaConfig(**{**QUICK, "rollback_wait": timedelta(minutes=5)}))
    stopped = ServedApp(build_app(*hosting.definitions()), admin_url=restate.server.admin)
    async with AdminClient(restate.server.admin) as admin:
        with stopped:
            await admin.register(stopped.url)
        env = await restate.serve(tasks, jobs)
        keys = [str(uuid4()) for _ in range(5)]
        run = Target(bench.name, "run", None, object)
        owned = ", ".join(sql_text(f"{bench.name}:{key}") for key in keys)
        sent = (
            "select count(*) as number from sys_invocation_status "
            f"where target_service_name in ('Rollbacks', 'ExecutionRollbacks') and (target_service_key in ({owned}) "
            f"or split_part(target_service_key, '@', 1) in ({owned}))"
        )
        async with IngressClient(env.ingress) as ingress:
            running = [asyncio.create_task(ingress.call(run, key=key)) for key in keys]

            async def asks_for_reports() -> bool:
                return (await admin.query(sent))[0]["number"] >= 2 * len(keys)

            await eventually(asks_for_reports, what="a request and a query of each saga")

            async def retried() -> bool:
                rows = await admin.query(
                    "select i.id from sys_invocation i where i.target_service_name = 'Rollbacks' "
                    f"and i.target_service_key in ({owned}) and i.retry_count < 8"
                )
                return not rows

            await eventually(retried, what="an outage of several retries")
            assert (await admin.query(sent))[0]["number"] == 2 * len(keys), "as many as at its beginning"
            await restate.serve(*hosting.definitions())
            for error in await asyncio.gather(*running, return_exceptions=True):
                assert isinstance(error, IngressError)
                assert error.metadata["rollback_undone"] == "a"
        for each in await admin.deployments():
            if each.get("uri", "").rstrip("/") == stopped.url.rstrip("/"):
                await admin.remove_deployment(each["id"])
