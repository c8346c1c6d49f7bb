"""Causes of stuck invocations, each produced on a real engine, and the advice for it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest
import restate as sdk
from typer.testing import CliRunner

from perdure._runtime.ports import free_ports
from perdure.alerts.causes import Cause
from perdure.alerts.conditions import Alert, Condition
from perdure.alerts.service import add_pause_reasons, take_snapshot
from perdure.cli import doctor, options
from perdure.cli.main import app
from perdure.engine.admin import AdminClient
from perdure.serving import build_app, listening
from perdure.testing import Mode, RestateServer
from perdure.testing.plugin import RestateServers
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

SOON = timedelta(milliseconds=50)
HANGING_LIMIT = timedelta(seconds=1)


class Ward:
    """Service whose handlers fail or hang for different causes, until it is repaired."""

    def __init__(self, folder: Path) -> None:
        self.name = f"Ward{uuid4().hex[:8]}"
        self.repaired = asyncio.Event()
        self.attempts = 0
        self._folder = folder
        self.service = sdk.Service(self.name)
        retried = sdk.InvocationRetryPolicy(initial_interval=SOON, max_interval=SOON, max_attempts=100_000)
        paused = sdk.InvocationRetryPolicy(
            initial_interval=SOON, max_interval=SOON, max_attempts=3, on_max_attempts="pause"
        )
        for function in (self.mismatch, self.locked_database, self.refused_database, self.full_disk, self.wrong):
            self.service.handler(invocation_retry_policy=retried)(function)
        self.service.handler("paused_mismatch", invocation_retry_policy=paused)(self.mismatch)
        self.service.handler()(self.hang)
        self.service.handler(
            "aborted_hang", inactivity_timeout=SOON, abort_timeout=SOON, invocation_retry_policy=retried
        )(self.hang)
        self.service.handler()(self.progress)
        self.service.handler()(self.begun)

    async def mismatch(self, ctx: sdk.Context) -> None:
        self.attempts += 1
        await ctx.run_typed(f"version {self.attempts}", lambda: 1)
        await ctx.sleep(SOON)
        raise OSError("again")

    async def locked_database(self, ctx: sdk.Context) -> None:
        path = self._folder / "locked.db"
        with closing(sqlite3.connect(path)) as holder, closing(sqlite3.connect(path, timeout=0)) as waiting:
            holder.execute("begin exclusive")
            waiting.execute("begin exclusive")

    async def refused_database(self, ctx: sdk.Context) -> None:
        (port,) = free_ports(1)
        await asyncpg.connect(host="127.0.0.1", port=port, user="u", database="d")

    async def full_disk(self, ctx: sdk.Context) -> None:
        Path("/dev/full").write_bytes(b"x")  # noqa: ASYNC240

    async def wrong(self, ctx: sdk.Context) -> None:
        raise ValueError("a defect")

    async def hang(self, ctx: sdk.Context) -> None:
        await self.repaired.wait()

    async def progress(self, ctx: sdk.Context) -> None:
        """Run for longer than the limit, with short steps."""
        while not self.repaired.is_set():
            await ctx.run_typed("step", self._step)

    async def begun(self, ctx: sdk.Context) -> None:
        """Wait after an entry of the journal, with which the engine pins the deployment."""
        await ctx.run_typed("begin", lambda: 1)
        await self.repaired.wait()

    async def _step(self) -> None:
        await asyncio.sleep(0.1)


@pytest.fixture
def server(restate_servers: RestateServers, monkeypatch: pytest.MonkeyPatch) -> RestateServer:
    monkeypatch.setattr(options.console, "_width", 600)
    monkeypatch.setattr(doctor, "HANGING_LIMIT", HANGING_LIMIT)
    return restate_servers.for_mode(Mode.HTTP2)


@pytest.fixture
async def admin(server: RestateServer) -> AsyncIterator[AdminClient]:
    """Admin client that ends the invocations of the test, and removes its registrations."""
    async with AdminClient(server.admin) as admin:
        before = {each["id"] for each in await admin.deployments()}
        yield admin
        for row in await admin.query(
            "select id from sys_invocation_status where target_service_name like 'Ward%' and status != 'completed'"
        ):
            await admin.control_invocation(row["id"], "kill")
        for each in await admin.deployments():
            if each["id"] not in before:
                await admin.remove_deployment(each["id"])


async def send(server: RestateServer, ward: Ward, handler: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        (await http.post(f"{server.ingress}/{ward.name}/{handler}/send")).raise_for_status()


async def find(admin: AdminClient, ward: Ward, fits: Callable[[Alert], bool]) -> Alert:
    seen: list[Alert] = []

    async def probe() -> Alert | None:
        snapshot = await take_snapshot(admin, 2, timedelta(0), hanging_limit=HANGING_LIMIT)
        seen[:] = [each for each in (await add_pause_reasons(admin, snapshot)).alerts if each.service == ward.name]
        return next((each for each in seen if fits(each)), None)

    return await eventually(probe, what=lambda: f"such an alert; there were {seen}")


async def doctor_lines(server: RestateServer) -> list[str]:
    command = ["doctor", "--ingress", server.ingress, "--admin", server.admin]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert "Traceback" not in result.output
    return [" ".join(line.split()) for line in result.output.splitlines()]


@pytest.mark.parametrize(
    ("handler", "condition", "cause", "advice"),
    [
        ("mismatch", Condition.BACKING_OFF, Cause.JOURNAL_MISMATCH, "start the old code beside the new one"),
        ("paused_mismatch", Condition.PAUSED, Cause.JOURNAL_MISMATCH, "then run: perdure invocations resume inv_"),
        ("locked_database", Condition.BACKING_OFF, Cause.DATABASE, "The database is unavailable"),
        ("refused_database", Condition.BACKING_OFF, Cause.DATABASE, "The database is unavailable"),
        ("full_disk", Condition.BACKING_OFF, Cause.DISK, "Free space"),
        ("wrong", Condition.BACKING_OFF, Cause.OTHER, "Fix the cause"),
        ("hang", Condition.HANGING, Cause.HANG, "The handler hangs"),
        ("aborted_hang", Condition.BACKING_OFF, Cause.HANG, "The handler hangs"),
    ],
)
async def test_cause_and_action(  # noqa: PLR0917
    server: RestateServer,
    admin: AdminClient,
    tmp_path: Path,
    handler: str,
    condition: Condition,
    cause: Cause,
    advice: str,
):
    ward = Ward(tmp_path)
    async with listening(build_app(ward.service)) as listener:
        await admin.register(listener.url)
        await send(server, ward, handler)

        # The first failure of a journal mismatch is a different one.
        alert = await find(admin, ward, lambda each: each.condition is condition and each.cause is cause)

        assert advice in alert.action
        (line,) = [line for line in await doctor_lines(server) if f"1 of {ward.name} is" in line]
        assert line.startswith("!! invocations")
        assert advice in line
        ward.repaired.set()


async def test_progress_is_no_hang(server: RestateServer, admin: AdminClient, tmp_path: Path):
    ward = Ward(tmp_path)
    async with listening(build_app(ward.service)) as listener:
        await admin.register(listener.url)
        await send(server, ward, "progress")
        await send(server, ward, "hang")  # began later, and is found as soon as its limit has passed

        await find(admin, ward, lambda each: each.handler == "hang")

        snapshot = await take_snapshot(admin, 2, timedelta(0), hanging_limit=HANGING_LIMIT)
        assert [each.handler for each in snapshot.alerts if each.service == ward.name] == ["hang"]
        ward.repaired.set()


async def test_deployment_in_use_is_never_given_up(server: RestateServer, admin: AdminClient, tmp_path: Path):
    ward = Ward(tmp_path)
    async with listening(build_app(ward.service)) as listener:
        await admin.register(listener.url)
        await send(server, ward, "begun")
        await eventually(lambda: pinned(admin, ward), what="pinned invocation")

    alert = await find(admin, ward, lambda each: each.cause is Cause.UNREACHABLE)
    assert "Its deployment is in use, so do not remove it" in alert.action
    (line,) = [line for line in await doctor_lines(server) if f"services at {listener.url} " in line]
    assert (
        "do not respond (ConnectError); start them. Do not remove this deployment: 1 open invocations need it" in line
    )

    (deployment,) = [each for each in await admin.deployments() if str(each["uri"]).rstrip("/") == listener.url]
    await admin.remove_deployment(deployment["id"])
    alert = await find(admin, ward, lambda each: each.cause is Cause.DEPLOYMENT_REMOVED)
    assert "Register the code that it ran on" in alert.action

    async with listening(build_app(ward.service)) as listener:
        await admin.register(listener.url)
        await admin.control_invocation(alert.invocation, "pause")
        await find(admin, ward, lambda each: each.condition is Condition.PAUSED)
        async with httpx.AsyncClient(trust_env=False) as http:
            resumed = await http.patch(f"{server.admin}/invocations/{alert.invocation}/resume?deployment=latest")
            assert resumed.is_success, resumed.text
        ward.repaired.set()
        await eventually(lambda: ended(admin, ward), what="end of the invocation")


async def test_unused_deployment_may_be_removed(server: RestateServer, admin: AdminClient, tmp_path: Path):
    ward = Ward(tmp_path)
    async with listening(build_app(ward.service)) as old:
        await admin.register(old.url)
    async with listening(build_app(ward.service)) as new:
        await admin.register(new.url)
        lines = await doctor_lines(server)
    (line,) = [line for line in lines if f"services at {old.url} " in line]
    assert "or remove this deployment from the engine, since nothing needs it" in line


async def test_stopped_process_is_reported_as_hang(server: RestateServer, admin: AdminClient, tmp_path: Path):
    ward = Ward(tmp_path)
    async with listening(build_app(ward.service)) as listener:
        await admin.register(listener.url)
    connections: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", listener.port)
    async with silent:
        lines = await doctor_lines(server)
        silent.close()
    for writer in connections:
        writer.close()
        await writer.wait_closed()
    (line,) = [line for line in lines if f"services at {listener.url} " in line]
    assert "accept connections but do not respond: their process hangs or is stopped; restart it." in line
    assert f"Do not remove this deployment: new calls of {ward.name} go to it" in line


async def pinned(admin: AdminClient, ward: Ward) -> bool:
    sql = f"select pinned_deployment_id as id from sys_invocation_status where target_service_name = '{ward.name}'"
    return any(row.get("id") for row in await admin.query(sql))


async def ended(admin: AdminClient, ward: Ward) -> bool:
    sql = f"select id from sys_invocation_status where target_service_name = '{ward.name}' and status != 'completed'"
    return not await admin.query(sql)
