"""Public handlers and the keys of a running platform."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat

import httpx
import pytest

from perdure.dev import ENGINE
from perdure.security import PrivateKey
from services.console.engine import EngineClient
from services.gateway.directory import Directory
from services.runtime.platform import Platform
from services.runtime.topology import SERVICES, Topology
from tests.command_line import run_perdure
from tests.support import eventually
from tests.system.attacks.ports import signed_headers
from tests.system.scenarios.harness import Harness
from tests.system.scenarios.load import Stream

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

# Handlers that any client of the ingress may call. Those that change data require a signed action or serve customers.
PUBLIC = {
    "Alerts/list",
    "Alerts/scan",
    "ApprovalInbox/list",
    "ApprovalReconciler/reconcile",
    "Approvals/approve",
    "Approvals/decide_by_link",
    "Approvals/delegate",
    "Approvals/reject",
    "Approvals/revoke_links",
    "Approvals/status",
    "Approvals/withdraw",
    "DeadLetters/act_on_many",
    "DeadLetters/annotate",
    "DeadLetters/discard",
    "DeadLetters/list",
    "DeadLetters/redrive",
    "DeadLetters/resolve",
    "DeadLetters/skip",
    "HeldSteps/act_on_many",
    "HeldSteps/complete",
    "HeldSteps/list",
    "HeldSteps/retry",
    "HeldSteps/roll_back",
    "HeldSteps/show",
    "Principals/put",
    "Principals/revoke",
    "Principals/status",
    "ExecutionRollbacks/status",
    "Rollbacks/status",
    "ScheduleIndex/list",
    "Schedules/pause",
    "Schedules/remove",
    "Schedules/resume",
    "Schedules/set",
    "Schedules/status",
    "Schedules/trigger",
    "SagaOperations/start",
    "SagaOperations/status",
    "SagaReconciler/reconcile",
    "Trips/run",
    "Trips/status",
}

# Public handlers marked as read-only, which every role may call at the gateway.
READING = {
    "Alerts/list",
    "ApprovalInbox/list",
    "Approvals/status",
    "DeadLetters/list",
    "HeldSteps/list",
    "HeldSteps/show",
    "Principals/status",
    "ExecutionRollbacks/status",
    "Rollbacks/status",
    "SagaOperations/status",
    "ScheduleIndex/list",
    "Schedules/status",
    "Trips/status",
}


def perdure(*arguments: str) -> str:
    """Run `perdure` and return its output."""
    done = run_perdure(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def platform(harness: Harness) -> Platform:
    return harness.platform


async def test_public_handlers_match_list(platform: Platform):
    asked = ("services", "--admin", platform.topology.admin_url)
    listed = json.loads(await asyncio.to_thread(perdure, *asked, "--public", "--json"))["handlers"]
    assert {f"{each['service']}/{each['handler']}" for each in listed} == PUBLIC
    shown = await asyncio.to_thread(perdure, *asked)
    assert "private" in shown
    assert shown.rstrip().endswith(f"{len(PUBLIC)} public")


async def test_read_only_handlers_match_list(platform: Platform):
    async with EngineClient.open(platform.topology.ingress_url, platform.topology.admin_url) as engine:
        known = await Directory(engine).handlers()
    assert known.public == PUBLIC
    assert known.reading == READING


async def test_private_keys_are_readable_by_owner_only(platform: Platform):
    keys = {path.name: path for path in platform.topology.keys_dir.iterdir()}
    assert keys.keys() == {"engine-identity.pem", "console-issuer.pem", "approval-links.pem"}
    for path in keys.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        PrivateKey.load(path)


async def test_engine_key_rotation_fails_no_trip(platform: Platform):
    topology = platform.topology
    file = topology.identity_key_file
    old = PrivateKey.load(file)
    async with Stream.on("rotation", [topology.ingress_url]) as stream:
        await stream.flow(10)
        await asyncio.to_thread(perdure, "keys", "rotate", str(file))
        await _restart_services(platform, stream)
        assert await _is_trusted(topology, old)
        await asyncio.to_thread(perdure, "keys", "rotate", str(file), "--activate")
        await _restart(platform, [ENGINE], stream)
        file.with_name(f"{file.name}.previous").unlink()
        await _restart_services(platform, stream)
    new = PrivateKey.load(file)
    assert new.public != old.public
    assert not await _is_trusted(topology, old)
    assert await _is_trusted(topology, new)
    async with Harness.on(platform) as harness:
        assert await harness.audit() == "holds"


async def _restart_services(platform: Platform, stream: Stream) -> None:
    """Restart the data plane, then the control plane."""
    for plane in ("data", "control"):
        await _restart(platform, [spec.name for spec in SERVICES if spec.plane == plane], stream)


async def _restart(platform: Platform, names: list[str], stream: Stream) -> None:
    """Stop processes with SIGTERM and restart them, then wait for further trips."""

    async def restart(name: str) -> None:
        async def ended() -> str | None:
            return platform.exit_reason(name)

        pid = platform.pid(name)
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        await eventually(ended, what=f"end of {name}", within=20)
        await platform.restart(name)

    await asyncio.gather(*map(restart, names))
    await stream.flow(5)


async def _is_trusted(topology: Topology, key: PrivateKey) -> bool:
    """Return whether the services accept requests signed with a key; all must agree."""
    headers = {**signed_headers(key, "/discover"), "accept": "application/vnd.restate.endpointmanifest.v4+json"}
    async with httpx.AsyncClient(trust_env=False) as http:
        answers = {
            (await http.get(f"{topology.service_url(spec.name)}/discover", headers=headers)).status_code
            for spec in SERVICES
        }
    assert answers in ({200}, {401}), answers
    return answers == {200}
