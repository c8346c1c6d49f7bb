"""Upgrade of a service under load: bookings continue, and each saga ends on the version that it started on."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from perdure._runtime.ports import free_ports
from perdure.approvals.messages import DecisionRequest
from perdure.approvals.targets import approve
from perdure.dev.processes import ChildProcess
from perdure.engine.admin import AdminClient
from perdure.engine.deployments import DeploymentError, drain, old_versions, register
from services.contracts import trips
from services.data_plane.audit import audit
from services.runtime.connections import answers, local_http
from services.runtime.platform import Platform
from services.runtime.registration import registration
from services.runtime.topology import service
from tests.system.cluster.conftest import Running
from tests.system.scenarios.harness import Harness
from tests.system.scenarios.load import Stream
from tests.system.scenarios.orders import order

pytestmark = pytest.mark.timeout(240)

ORCHESTRATOR = service("orchestrator")
TRIPS, NAME = ORCHESTRATOR.serves, ORCHESTRATOR.name


@asynccontextmanager
async def newer_version(platform: Platform) -> AsyncIterator[str]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    async with local_http() as http:
        process = ChildProcess(
            "newer",
            [sys.executable, "-P", "-m", "tests.system.cluster.newer_orchestrator", str(port)],
            ready=lambda: answers(http, f"{url}/ready"),
            environment=lambda: {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path])),
            },
            log_file=platform.topology.log_dir / "newer.log",
            pid_file=platform.topology.run_dir / "newer.pid",
        )
        try:
            await process.start()
            yield url
        finally:
            await process.stop(asyncio.Event())


async def steps_of(admin: AdminClient, trip: str) -> tuple[str, list[str]]:
    """Return the deployment that a trip ran on, and the services that it called, in order."""
    rows = await admin.query(
        "select i.pinned_deployment_id as deployment, j.entry_json, j.index from sys_invocation i "
        "join sys_journal j on j.id = i.id "
        f"where i.target_service_name = 'Trips' and i.target_handler_name = 'run' and i.target_service_key = '{trip}' "
        "order by j.index"
    )
    called = [name for row in rows for name in ("Flights", "Hotels") if f'"{name}"' in str(row["entry_json"])]
    return rows[0]["deployment"], list(dict.fromkeys(called))


async def test_new_version_takes_over_under_load(running: Running, tmp_path: Path) -> None:
    async with running(tmp_path / "platform") as platform, newer_version(platform) as url:
        topology = platform.topology
        old_url = topology.service_url("orchestrator")
        async with Harness.on(platform) as harness, AdminClient(topology.admin_url) as admin:
            # A saga that waits for an approval may run for days, so the upgrade must not break it.
            await harness.ingress.send(trips.book, order(amount_minor=200_000), key="waits")
            await harness.until_step("waits", "approval")

            async with Stream.on("upgrade", [topology.ingress_url]) as stream:
                await stream.flow(20)
                await register(admin, [registration(ORCHESTRATOR, url)], elsewhere="keep")
                reports: list[str] = []
                with pytest.raises(DeploymentError, match=f"orchestrator: {old_url} still has open .* after 3 s"):
                    await drain(admin, TRIPS, name=NAME, timeout=timedelta(seconds=3), report=reports.append)
                assert reports[-1] == f"{old_url} still has 1 open invocations"
                (old,) = await old_versions(admin, TRIPS)

                await harness.ingress.call(approve, DecisionRequest(actor="boss", reason="have fun"), key="waits")
                drained = await drain(admin, TRIPS, name=NAME, timeout=timedelta(seconds=60), report=reports.append)
                assert drained == [old_url]
                await platform.kill("orchestrator")  # bookings continue on the new version
                await stream.flow(20)

            assert (await harness.ingress.attach(trips.book, key="waits")).status == "confirmed"
            assert await steps_of(admin, "waits") == (old.id, ["Flights", "Hotels"])
            assert await steps_of(admin, "upgrade-00001") == (old.id, ["Flights", "Hotels"])
            last, order_of_calls = await steps_of(admin, f"upgrade-{stream.confirmed:05d}")
            assert (last != old.id, order_of_calls) == (True, ["Hotels", "Flights"])
            mismatches = await admin.query("select id from sys_invocation where last_failure_error_code = 'RT0016'")
            assert mismatches == []
            assert await drain(admin, TRIPS, name=NAME, timeout=timedelta(0), report=reports.append) == []
            await harness.until_quiet()
        report = await audit(topology.databases, settled=True)
        assert report.ok
        assert report.confirmed == stream.confirmed + 1
