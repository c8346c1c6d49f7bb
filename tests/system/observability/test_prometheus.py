"""A real Prometheus for a real platform: alerts fire only when they should, and every panel has data.

The rules are those of deploy/prometheus/rules with shorter durations. `tests.system.cluster.test_leaders` tests
leaderless partitions.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sqlite3
import threading
import time

import httpx
import pytest

from perdure.dev import ENGINE
from perdure.engine.admin import AdminClient, sql_text
from perdure.saga.status import RollbackState
from services.database import database_url
from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.topology import SERVICES
from tests.support import eventually
from tests.system.observability.conftest import Observed
from tests.system.observability.panels import panel_queries
from tests.system.observability.prometheus import Prometheus
from tests.system.scenarios.dead_letters import HOTEL
from tests.system.scenarios.orders import order
from tests.system.scenarios.scenarios import SCENARIOS, play

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

# Processes other than the services: the engine and the defective service.
OTHERS = 2


@pytest.fixture
def prometheus(observed: Observed) -> Prometheus:
    if observed.prometheus is None:
        pytest.skip("Prometheus not found; run make prometheus")
    return observed.prometheus


async def fires(prometheus: Prometheus, *names: str, within: float = 40) -> None:
    async def all_fire() -> bool:
        return set(names) <= await prometheus.firing()

    try:
        await eventually(all_fire, what=f"alerts {names}", within=within)
    except AssertionError as error:
        raise AssertionError(f"{error}; firing: {await prometheus.firing()}") from error


async def invocation(observed: Observed, service: str, handler: str, key: str) -> str:
    async def found() -> str | None:
        async with AdminClient(observed.harness.platform.topology.admin_url) as admin:
            rows = await admin.query(
                f"select id from sys_invocation_status where target_service_name = {sql_text(service)} and "
                f"target_handler_name = {sql_text(handler)} and target_service_key = {sql_text(key)} "
                "and status != 'completed'"
            )
        return rows[0]["id"] if rows else None

    return await eventually(found, what=f"an invocation of {service}/{handler}")


async def act(observed: Observed, invocation_id: str, action: str) -> None:
    async with AdminClient(observed.harness.platform.topology.admin_url) as admin:
        await admin.control_invocation(invocation_id, action)  # type: ignore[arg-type] # one of its literals


async def test_healthy_platform_has_no_alerts(observed, prometheus):
    for _ in range(5):
        assert await observed.harness.book(new_trip_id(), ORDINARY) == "confirmed"

    async def scraped() -> bool:
        counts = await prometheus.query("count_over_time(up[1h])")
        return len(counts) == len(SERVICES) + OTHERS and min(count for _, count in counts) >= 10

    await eventually(scraped, what="ten scrapes of each process", within=40)
    assert {labels.get("process", labels["job"]) for labels, up in await prometheus.query("up") if up == 1} == {
        "restate",
        "reports",
        *(spec.name for spec in SERVICES),
    }
    assert await prometheus.firing() == set()
    (evaluated,) = await prometheus.query("count(count by (alertname) (ALERTS_FOR_STATE)) or vector(0)")
    assert evaluated[1] == 0


async def test_dead_letter_alerts(observed, prometheus):
    for _ in range(2):  # an increase needs two scrapes
        trip_id = new_trip_id()
        await observed.harness.book(trip_id, order(hotel=HOTEL, account="acct-declined"))
        await observed.harness.until_rollback(trip_id, RollbackState.NEEDS_ATTENTION)
        await fires(prometheus, "PerdureDeadLettersOpen")
    await fires(prometheus, "PerdureRollbackFailing")

    async def both() -> bool:
        return [count for _, count in await prometheus.query('perdure_dead_letters_open{service="Trips"}')] == [2]

    await eventually(both, what="two dead letters")


async def test_paused_saga_and_failing_webhook_alert(observed, prometheus):
    trip_id = new_trip_id()
    await observed.harness.send(trip_id, order(amount_minor=250_000))
    await observed.harness.until_step(trip_id, "approval")
    running = await invocation(observed, "Trips", "run", trip_id)
    await act(observed, running, "pause")
    await fires(prometheus, "PerdureInvocationsPaused", "PerdureSagaStuck", "PerdureWebhookFailing")
    observed.webhook.accepts.set()
    await act(observed, running, "kill")


async def test_overdue_approval_alerts(observed, prometheus):
    trip_id = new_trip_id()
    await observed.harness.send(trip_id, order(amount_minor=250_000))
    await observed.harness.until_step(trip_id, "approval")
    end = await invocation(observed, "Approvals", "end_stage", trip_id)

    async def near_deadline() -> bool:
        values = await prometheus.query("max(perdure_approvals_oldest_seconds) > 4")
        return bool(values)

    # Kill the timer late in the stage's 8 seconds, since the reconciler restores it after five.
    await eventually(near_deadline, what="an approval near its deadline", within=30)
    await act(observed, end, "kill")
    await fires(prometheus, "PerdureApprovalOverdue", within=15)


async def test_hanging_invocation_alerts(observed, prometheus):
    topology = observed.harness.platform.topology
    async with AdminClient(topology.admin_url) as admin:
        await admin.register(observed.reports_url)
    async with httpx.AsyncClient(trust_env=False, base_url=topology.ingress_url) as client:
        sent = (await client.post("/Reports/hang/send")).raise_for_status()
    await fires(prometheus, "PerdureInvocationsHanging", within=60)

    await act(observed, sent.json()["invocationId"], "kill")

    async def resolved() -> bool:
        return "PerdureInvocationsHanging" not in await prometheus.firing()

    await eventually(resolved, what="the end of the alert", within=60)


async def test_stopped_service_alerts(observed, prometheus):
    platform = observed.harness.platform
    await platform.kill("hotels")
    for _ in range(20):  # a single failing invocation does not alert
        await observed.harness.send(new_trip_id(), ORDINARY)
    await fires(
        prometheus,
        "PerdureTargetDown",
        "PerdureProcessMissing",
        "PerdureInvocationsBackingOff",
        "PerdureErrorBudgetBurnsFast",
        "PerdureErrorBudgetBurnsSlowly",
    )
    await platform.restart("hotels")

    async def resolved() -> bool:
        names = {"PerdureTargetDown", "PerdureProcessMissing", "PerdureInvocationsBackingOff"}
        return not names & await prometheus.firing()

    await eventually(resolved, what="the end of the alerts", within=40)


async def test_unresponsive_engine_alerts(observed, prometheus):
    pid = observed.harness.platform.pid(ENGINE)
    assert pid is not None
    assert "PerdureEngineBehind" not in await prometheus.firing()
    # Stopped under load, the engine leaves unprocessed log records.
    sends = [asyncio.create_task(observed.harness.send(new_trip_id(), ORDINARY)) for _ in range(60)]
    await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        await fires(prometheus, "PerdureReconcilerStale", "PerdureTargetDown", "PerdureProcessMissing")
        await eventually(lambda: time.monotonic() > stopped + 15, what="records that wait longer than the rule's limit")
    finally:
        os.kill(pid, signal.SIGCONT)
    await asyncio.gather(*sends)
    await fires(prometheus, "PerdureEngineBehind")

    async def scans_again() -> bool:
        return "PerdureReconcilerStale" not in await prometheus.firing()

    await eventually(scans_again, what="a complete scan", within=60)


async def test_every_panel_has_data(observed, prometheus):
    async with AdminClient(observed.harness.platform.topology.admin_url) as admin:
        await admin.register(observed.reports_url)
    async with httpx.AsyncClient(trust_env=False, base_url=observed.harness.platform.topology.ingress_url) as client:
        for at in (1_700_000_000, 1_700_000_001):  # an increase needs two values
            assert (await client.post("/Reports/order", json=at)).json() == f"report of {at}"
    for scenario in SCENARIOS:
        if scenario.name in ("approved", "rejected", "withdrawn", "dead-letter", "dead-letter-kill"):
            facts = await play(scenario, observed.harness)
            # The audit also reports the data of earlier tests.
            assert [fact for fact in facts if not fact.agrees and fact.what != "audit"] == []
    waiting = new_trip_id()
    await observed.harness.send(waiting, order(amount_minor=250_000))
    await observed.harness.until_step(waiting, "approval")
    await act(observed, await invocation(observed, "Trips", "run", waiting), "pause")
    async with httpx.AsyncClient(trust_env=False) as client:
        url = observed.harness.platform.topology.service_url("flights")
        assert (await client.post(f"{url}/invoke/Flights/reserve")).status_code == 401
    database = database_url(observed.harness.platform.topology.databases["flights"]).database

    def lock() -> None:
        with sqlite3.connect(database or "", isolation_level=None) as connection:
            connection.execute("BEGIN IMMEDIATE")
            assert released.wait(20)
            connection.execute("ROLLBACK")
        connection.close()

    released = threading.Event()
    holding = asyncio.create_task(asyncio.to_thread(lock))
    trip_id = new_trip_id()
    await observed.harness.send(trip_id, ORDINARY)

    async def retried() -> bool:
        return bool(await prometheus.query('perdure_runs_total{outcome="retried"} > 0'))

    await eventually(retried, what="a retried run", within=30)
    released.set()
    await holding

    cancelled = new_trip_id()
    await observed.harness.send(cancelled, order(amount_minor=250_000))
    await observed.harness.until_step(cancelled, "approval")
    await observed.harness.platform.kill("hotels")  # keep its rollback open
    await observed.harness.control_trip(cancelled, "cancel")

    queries = list(panel_queries())
    assert len({query.dashboard for query in queries}) == 5
    empty = {f"{query.dashboard}: {query.panel}" for query in queries}

    async def all_have_data() -> bool:
        for query in queries:
            name = f"{query.dashboard}: {query.panel}"
            if name not in empty:
                continue
            if any(not math.isnan(value) for _, value in await prometheus.query(query.strict.promql("2m"))):
                empty.discard(name)
        return not empty

    try:
        await eventually(all_have_data, what="data", within=30)
    finally:
        await observed.harness.platform.restart("hotels")
        assert empty == set()
