"""Cost of queries with a history of finished sagas, relative to one scan of a table of the same size."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from benchmarks.history import SERVICE, synthetic_history
from perdure import IngressClient
from perdure.alerts.conditions import attempt_conditions_sql, attempts_sql, stored_conditions_sql
from perdure.engine.admin import AdminClient
from perdure.saga.queries import list_sagas, open_sagas_sql
from perdure.saga.schema import (
    DEAD_LETTERS_SQL,
    closed_sql,
    execution_sql,
    open_passes_sql,
    phases_sql,
    recorded_steps_sql,
    saga_names_sql,
)
from perdure.saga.status import SagaPhase

pytestmark = pytest.mark.restate_modes("http2")

SAGAS = 1_000
KEY = "history-7"
STATE_SCAN = "select count(*) from state where value = x'00'"
STATUS_SCAN = "select count(*) from sys_invocation_status where status = 'paused'"
_SCAN = re.compile(r'PartitionedExecutionPlan: .*table_name: "(\w+)".*elapsed_compute=([0-9.]+)(ns|µs|ms|s)\b')
_UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


async def reading(admin: AdminClient, sql: str, table: str = "") -> float:
    """Return the time that the engine reads rows of a table, or of all, for a query; the shortest of some."""
    times = []
    for _ in range(5):
        plan = "\n".join(row["plan"] for row in await admin.query(f"explain analyze {sql}"))
        scans = _SCAN.findall(plan)
        assert scans, plan
        times.append(sum(float(number) * _UNITS[unit] for name, number, unit in scans if name == table or not table))
    return min(times)


async def test_cost_follows_open_work(engine, admin):
    async with IngressClient(engine.ingress) as ingress, synthetic_history(admin, ingress) as history:
        await history.grow_to(SAGAS)
    state, status = await reading(admin, STATE_SCAN), await reading(admin, STATUS_SCAN)
    (row,) = await admin.query(f"select id from sys_invocation_status where target_service_key = '{KEY}'")
    by_key = {
        "dead letters": DEAD_LETTERS_SQL,
        "names": saga_names_sql([KEY, "history-8"]),
        "phases": phases_sql([KEY]),
        "passes": open_passes_sql([KEY]),
        "steps": recorded_steps_sql(SERVICE, KEY),
        "result": closed_sql(SERVICE, KEY),
        "execution": execution_sql(SERVICE, KEY),
        "attempts": attempts_sql(2, timedelta(minutes=5)),
        "attempt": attempt_conditions_sql(2, timedelta(minutes=5), [row["id"]]),
    }
    costs = {name: await reading(admin, sql) for name, sql in by_key.items()}
    assert {name: cost for name, cost in costs.items() if cost > min(state, status) / 3} == {}

    # Without open sagas, the state of the finished ones is not read.
    open_sagas = await open_sagas_sql(admin.query) + "select * from sagas"
    assert await reading(admin, open_sagas, "state") < state / 3
    assert await reading(admin, stored_conditions_sql(timedelta(hours=1), timedelta(minutes=1)), "state") == 0

    ended = await list_sagas(admin, phases=[SagaPhase.COMPLETED], limit=1)
    assert ended.total == SAGAS
    assert (await list_sagas(admin, phases=[SagaPhase.COMPLETED], since=timedelta(0))).total == 0
    assert (await list_sagas(admin)).total == 0
