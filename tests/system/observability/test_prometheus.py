"""A real Prometheus beside a real platform: a quiet one raises no alert, each alert fires when it is caused, and behind
every panel there is data.

The rules are those of deploy/prometheus/rules with their times divided. Partitions without a leader take a cluster, see
`tests.system.cluster.test_leaders`.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sqlite3
import threading

import httpx
import pytest

from perdure import AdminClient
from perdure.engine.admin import sql_text
from perdure.saga.status import RollbackState
from services.data_plane.database import database_url
from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.topology import ENGINE, SERVICES
from tests.support import eventually
from tests.system.observability.conftest import Observed
from tests.system.observability.panels import panel_queries
from tests.system.observability.prometheus import Prometheus
from tests.system.scenarios.dead_letters import HOTEL
from tests.system.scenarios.orders import order
from tests.system.scenarios.scenarios import SCENARIOS, play

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

# Processes beside the services: the engine, and a user's own.
OTHERS = 2


@pytest.fixture
def prometheus(observed: Observed) -> Prometheus:
    if observed.prometheus is None:
        pytest.skip("there is no Prometheus: make prometheus")
    return observed.prometheus


async def fires(prometheus: Prometheus, *names: str, within: float = 40) -> None:
    async def all_do() -> bool:
        return set(names) <= await prometheus.firing()

    try:
        await eventually(all_do, what=f"alerts {names}", within=within)
    except AssertionError as error:
        raise AssertionError(f"{error}; firing: {await prometheus.firing()}") from error


async def invocation(observed: Observed, service: str, handler: str, key: str) -> str:
    async def found() -> str | None:
        async with AdminClient(observed.stage.platform.topology.admin_url) as admin:
            rows = await admin.query(
                f"select id from sys_invocation_status where target_service_name = {sql_text(service)} and "
                f"target_handler_name = {sql_text(handler)} and target_service_key = {sql_text(key)} "
                "and status != 'completed'"
            )
        return rows[0]["id"] if rows else None

    return await eventually(found, what=f"invocation of {service}/{handler}")


async def act(observed: Observed, invocation_id: str, what: str) -> None:
    async with AdminClient(observed.stage.platform.topology.admin_url) as admin:
        await admin.act(invocation_id, what)  # type: ignore[arg-type] # one of its literals


async def test_a_platform_that_is_well_raises_no_alert(observed, prometheus):
    for _ in range(5):
        assert await observed.stage.book(new_trip_id(), ORDINARY) == "confirmed"

    async def looked_often() -> bool:
        counts = await prometheus.query("count_over_time(up[1h])")
        return len(counts) == len(SERVICES) + OTHERS and min(count for _, count in counts) >= 10

    await eventually(looked_often, what="ten scrapes of each process", within=40)
    assert {labels.get("process", labels["job"]) for labels, up in await prometheus.query("up") if up == 1} == {
        "restate",
        "reports",
        *(spec.name for spec in SERVICES),
    }
    assert await prometheus.firing() == set()
    (evaluated,) = await prometheus.query("count(count by (alertname) (ALERTS_FOR_STATE)) or vector(0)")
    assert evaluated[1] == 0


async def test_a_step_that_can_not_be_undone(observed, prometheus):
    for _ in range(2):  # an increase is seen from the second look on
        trip_id = new_trip_id()
        await observed.stage.book(trip_id, order(hotel=HOTEL, account="acct-declined"))
        await observed.stage.until_rollback(trip_id, RollbackState.NEEDS_ATTENTION)
        await fires(prometheus, "PerdureDeadLettersOpen")
    await fires(prometheus, "PerdureRollbackFailing")

    async def both() -> bool:
        return [count for _, count in await prometheus.query('perdure_dead_letters_open{service="Trips"}')] == [2]

    await eventually(both, what="two dead letters")


async def test_a_saga_that_is_paused_and_a_webhook_that_does_not_take_the_news(observed, prometheus):
    trip_id = new_trip_id()
    await observed.stage.send(trip_id, order(amount_minor=250_000))
    await observed.stage.until_step(trip_id, "approval")
    running = await invocation(observed, "Trips", "run", trip_id)
    await act(observed, running, "pause")
    await fires(prometheus, "PerdureInvocationsPaused", "PerdureSagaStuck", "PerdureWebhookFailing")
    observed.webhook.takes.set()
    await act(observed, running, "kill")


async def test_an_approval_that_nobody_ends(observed, prometheus):
    trip_id = new_trip_id()
    await observed.stage.send(trip_id, order(amount_minor=250_000))
    await observed.stage.until_step(trip_id, "approval")
    end = await invocation(observed, "Approvals", "end_stage", trip_id)

    async def about_to_end() -> bool:
        values = await prometheus.query("max(perdure_approvals_oldest_seconds) > 4")
        return bool(values)

    # Late in its 8 seconds: what ends it is missed, and put right, after five.
    await eventually(about_to_end, what="approval near its end", within=30)
    await act(observed, end, "kill")
    await fires(prometheus, "PerdureApprovalOverdue", within=15)


async def test_a_service_that_is_down(observed, prometheus):
    platform = observed.stage.platform
    await platform.kill("hotels")
    for _ in range(20):  # one alone is no trend
        await observed.stage.send(new_trip_id(), ORDINARY)
    await fires(
        prometheus,
        "PerdureTargetDown",
        "PerdureProcessMissing",
        "PerdureInvocationsBackingOff",
        "PerdureErrorBudgetBurnsFast",
        "PerdureErrorBudgetBurnsSlowly",
    )
    await platform.start_again("hotels")

    async def better() -> bool:
        ended = {"PerdureTargetDown", "PerdureProcessMissing", "PerdureInvocationsBackingOff"}
        return not ended & await prometheus.firing()

    await eventually(better, what="end of the alerts", within=40)


async def test_an_engine_that_does_not_answer_and_is_behind_when_it_does_again(observed, prometheus):
    pid = observed.stage.platform.pid(ENGINE)
    assert pid is not None
    assert "PerdureEngineBehind" not in await prometheus.firing()
    for _ in range(20):  # so that there are records which wait to be read
        await observed.stage.send(new_trip_id(), ORDINARY)
    os.kill(pid, signal.SIGSTOP)
    try:
        await fires(prometheus, "PerdureReconcilerStale", "PerdureTargetDown", "PerdureProcessMissing")
    finally:
        os.kill(pid, signal.SIGCONT)
    await fires(prometheus, "PerdureEngineBehind")

    async def sees_again() -> bool:
        return "PerdureReconcilerStale" not in await prometheus.firing()

    await eventually(sees_again, what="reconciler that sees", within=60)


async def test_behind_every_panel_there_is_data(observed, prometheus):
    async with AdminClient(observed.stage.platform.topology.admin_url) as admin:
        await admin.register(observed.reports_url)
    async with httpx.AsyncClient(trust_env=False, base_url=observed.stage.platform.topology.ingress_url) as user:
        for at in (1_700_000_000, 1_700_000_001):  # an increase is seen from the second on
            assert (await user.post("/Reports/order", json=at)).json() == f"report of {at}"
    for scenario in SCENARIOS:
        if scenario.name in ("approved", "rejected", "withdrawn", "dead-letter", "dead-letter-kill"):
            facts = await play(scenario, observed.stage)
            # What the tests before this one left behind, the audit finds.
            assert [fact for fact in facts if not fact.agrees and fact.what != "audit"] == []
    waiting = new_trip_id()
    await observed.stage.send(waiting, order(amount_minor=250_000))
    await observed.stage.until_step(waiting, "approval")
    await act(observed, await invocation(observed, "Trips", "run", waiting), "pause")
    async with httpx.AsyncClient(trust_env=False) as stranger:
        url = observed.stage.platform.topology.service_url("flights")
        assert (await stranger.post(f"{url}/invoke/Flights/reserve")).status_code == 401
    database = database_url(observed.stage.platform.topology.database_url).database

    def locked() -> None:
        with sqlite3.connect(database or "", isolation_level=None) as connection:
            connection.execute("BEGIN IMMEDIATE")
            assert released.wait(20)
            connection.execute("ROLLBACK")
        connection.close()

    released = threading.Event()
    holding = asyncio.create_task(asyncio.to_thread(locked))
    trip_id = new_trip_id()
    await observed.stage.send(trip_id, ORDINARY)

    async def tried_again() -> bool:
        return bool(await prometheus.query('perdure_runs_total{outcome="retried"} > 0'))

    await eventually(tried_again, what="run that is tried again", within=30)
    released.set()
    await holding

    undoing = new_trip_id()
    await observed.stage.send(undoing, order(amount_minor=250_000))
    await observed.stage.until_step(undoing, "approval")
    await observed.stage.platform.kill("hotels")  # so that its rollback takes until we have looked
    await observed.stage.act_on_trip(undoing, "cancel")

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
        await observed.stage.platform.start_again("hotels")
        assert empty == set()
