"""Random kills of orchestrations, children, rollbacks and dispatchers.

The suite runs one seed. ``STORM_SEEDS=1,2,3`` runs others; the moments of the kills vary with the machine.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from perdure import IngressClient, Orchestration, SagaConfig, StatusData, Target
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import EngineError, Refused
from perdure.retry import RetryPolicy
from perdure.saga import dispatch, submission
from perdure.saga.reconciler import SagaReconciler, SagaReconcilerConfig, find_orphans
from perdure.saga.schema import DEAD_LETTERS_SQL, EXECUTION_ROLLBACKS, PHASE_PREFIX
from perdure.testing import Mode, Restate, RestateServer
from tests.integration.saga_bench import QUICK, forget_runs, run_step
from tests.support import Recording, eventually

SEEDS = [int(seed) for seed in os.environ.get("STORM_SEEDS", "24").split(",")]
SAGAS = 8
KILLS = 30
PATIENT = {**QUICK, "max_attempts": 100}
TARGETS = ("Rollbacks", "ExecutionRollbacks", "RollbackDispatcher", "Tasks")

OPEN_ROLLBACKS = (
    f"select service_key from state where service_name = '{EXECUTION_ROLLBACKS}' and key = '{PHASE_PREFIX}running'"
)


@pytest.fixture
async def restate(restate_servers) -> AsyncIterator[Restate]:
    """A separate engine, so that the kills do not reach the sagas of other tests."""
    with RestateServer(install_dir=restate_servers.install_dir) as server:
        restate = Restate(server, Mode.HTTP2)
        yield restate
        await restate.close()


class Storm:
    """Kills random invocations of the named services, of which the first is the orchestration."""

    def __init__(self, admin: AdminClient, config: SagaReconcilerConfig, names: list[str], random: Random) -> None:
        self.admin = admin
        # Recently killed invocations also count as unfinished.
        self._config = replace(config, grace=timedelta(0))
        self._targets = ", ".join(sql_text(name) for name in names)
        self._main = names[0]
        self._random = random
        self.kills = 0

    async def kill_one(self) -> None:
        """Kill or cancel one of the open invocations."""
        rows = await self.admin.query(
            "select id, target from sys_invocation_status where status not in ('completed', 'scheduled') "
            f"and target_service_name in ({self._targets}) order by target, id"
        )
        if not rows:
            return
        target = self._random.choice(rows)
        is_main = target["target"].startswith(f"{self._main}/") and target["target"].endswith("/run")
        is_cancelled = is_main and self._random.random() < 0.5
        try:
            await self.admin.control_invocation(target["id"], "cancel" if is_cancelled else "kill")
        except EngineError as error:
            if error.status_code not in (404, 409):  # it has ended already
                raise
        else:
            self.kills += 1

    async def is_over(self) -> bool:
        """Return whether nothing runs and the reconciler has nothing to repair."""
        if await self.admin.query(
            "select id from sys_invocation_status where status not in ('completed', 'scheduled') and "
            f"(target_service_name in ({self._targets}) or target_service_name = 'RollbackDispatcher')"
        ):
            return False
        if await self.admin.query(OPEN_ROLLBACKS):
            return False
        return not await find_orphans(self.admin, self._config)

    async def compensated_twice(self) -> list[str]:
        """Return the steps whose compensation succeeded more than once."""
        rows = await self.admin.query(
            "select idempotency_key as key from sys_invocation_status where target_service_name = 'RollbackDispatcher' "
            "and target_handler_name = 'compensate' and completion_result = 'success' and idempotency_key is not null"
        )
        steps = Counter(row["key"].rpartition("/")[0] for row in rows)
        return [step for step, count in steps.items() if count > 1]

    async def diagnosis(self) -> str:
        """Describe the open invocations, journals and state, to explain a timeout."""
        queries = {
            "open": "select id, target, status, invoked_by_id, created_at, modified_at, retry_count, "
            "next_retry_at, last_failure from sys_invocation where status not in ('completed', 'scheduled')",
            "journals": "select j.id, j.index, j.entry_type, j.name, j.completed, j.invoked_target, j.invoked_id "
            "from sys_journal j join sys_invocation_status i on i.id = j.id where i.status != 'completed' "
            "and i.target_service_name != 'Alerts' order by j.id, j.index",
            "killed last": "select id, target, completion_failure, invoked_by_id, created_at, modified_at "
            "from sys_invocation where completion_result = 'failure' order by modified_at desc limit 30",
            "state": "select service_name, service_key, key, value_utf8 from state "
            f"where service_name in ('SagaReconciler', 'DeadLetterIndex') or service_key in ({OPEN_ROLLBACKS}) "
            "order by service_name, service_key, key",
        }
        lines = [f"{self.kills} kills"]
        for title, sql in queries.items():
            rows = await self.admin.query(sql)
            known = [{name: value for name, value in row.items() if value is not None} for row in rows]
            lines += [f"{title}:", *map(json.dumps, known)]
        return "\n".join(
            [*lines, "finds:", *(find.model_dump_json() for find in await find_orphans(self.admin, self._config))]
        )

    async def until_over(self) -> None:
        """Kill invocations, then wait until everything has ended."""
        last = self.kills + KILLS

        async def stops() -> bool:
            await self.kill_one()
            return self.kills >= last or await self.is_over()

        try:
            await eventually(stops, what=f"{KILLS} kills", within=60)
            await eventually(self.is_over, what="end of all sagas", within=60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await self.diagnosis()}") from None


def held(entries: list[str], key: str) -> set[str]:
    """Return the steps of a saga and its child that are not compensated."""
    steps: set[str] = set()
    for verb, _, step in (entry.partition(" ") for entry in entries):
        if step.startswith(key):
            (steps.discard if verb == "undo" else steps.add)(step)
    return steps


async def assert_all_or_none(ingress: IngressClient, service: str, keys: list[str], entries: list[str]) -> None:
    status = Target(service, "status", None, StatusData)
    for key in keys:
        # An orchestration that is killed right after closing its saga has completed.
        is_completed = (await ingress.call(status, key=key)).phase == "completed"
        steps = {f"{key}{step}" for step in ("/a", "-child/c1", "-child/c2", "/b")}
        own = [entry for entry in entries if key in entry]
        assert held(entries, key) == (steps if is_completed else set()), f"completed: {is_completed}, {own}"
        assert not (is_completed and key.endswith("refused"))


@pytest.mark.restate_modes("http2")
@pytest.mark.parametrize("seed", SEEDS)
async def test_random_kills_leave_all_steps_or_none(restate, bench, did: Recording, monkeypatch, seed):
    monkeypatch.setattr(submission, "OUTCOME_POLLS", RetryPolicy(timedelta(milliseconds=500), max_attempts=None))
    monkeypatch.setattr(dispatch, "MAX_PASS_WAIT", timedelta(milliseconds=500))
    child_name = f"{bench.name}Child"

    async def child(cp: Orchestration) -> None:
        await run_step(cp, "c1")
        await run_step(cp, "c2")

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        await cp.child("package", Target(child_name, "run", None, object), None, key=f"{cp.key}-child")
        await run_step(cp, "b")
        if cp.key.endswith("refused"):
            raise Refused("enough", 410)

    config = SagaReconcilerConfig(
        admin_url=restate.server.admin,
        ingress_url=restate.server.ingress,
        interval=timedelta(milliseconds=300),
        grace=timedelta(milliseconds=100),  # shorter than the interval, so that a second kill precedes the next scan
    )
    reconciler = SagaReconciler(config)
    run: Target[Any, Any] = Target(bench.name, "run", None, object)
    keys = [f"{uuid4()}-{'refused' if number % 2 else 'accepted'}" for number in range(SAGAS)]
    nested = bench.orchestration(child_name, child, SagaConfig(**PATIENT))
    ingress = await bench.serve(main, nested, reconciler, **PATIENT)
    async with AdminClient(config.admin_url) as admin, reconciler.watching():
        random = Random(seed)  # noqa: S311 - reproducible, not secret
        storm = Storm(admin, config, [bench.name, child_name, *TARGETS], random)
        for _ in range(2):  # the second time with reused keys
            begin = len(did.all())
            for key in keys:
                await ingress.send(run, None, key=key)
            await storm.until_over()
            await assert_all_or_none(ingress, bench.name, keys, did.all()[begin:])
            assert not await admin.query(DEAD_LETTERS_SQL)
            assert not await storm.compensated_twice()
            for key in keys:
                await forget_runs(admin, key)
                await forget_runs(admin, f"{key}-child")
        assert storm.kills >= SAGAS
