"""`perdure register` and `perdure deployments` on a real engine: from the first version to the removal of the last."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest
import restate

from perdure import DataPlaneContext, DataPlaneService, IngressClient, handler
from perdure.engine.admin import AdminClient
from perdure.engine.deployments import old_versions
from perdure.serving import Servable, build_app, listening
from perdure.targets import KeyedTarget
from perdure.testing import Mode, RestateServer
from perdure.testing.plugin import RestateServers
from tests.command_line import run_perdure
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

Command = Callable[..., Coroutine[Any, Any, subprocess.CompletedProcess[str]]]

WAIT = KeyedTarget("DeployedOrders", "wait", None, None)


def orders() -> Servable:
    service = restate.VirtualObject("DeployedOrders")

    @handler(service, "exclusive")
    async def wait(ctx: restate.ObjectContext) -> None:
        await ctx.sleep(timedelta(days=1))

    return service


def stock() -> Servable:
    service = DataPlaneService("DeployedStock", public=True)

    @service.handler()
    async def take(ctx: DataPlaneContext, part: str) -> str:
        return part

    return service


@pytest.fixture
def server(restate_servers: RestateServers) -> RestateServer:
    return restate_servers.for_mode(Mode.HTTP2)


@pytest.fixture
async def admin(server: RestateServer) -> AsyncIterator[AdminClient]:
    async with AdminClient(server.admin) as admin:
        before = {each["id"] for each in await admin.deployments()}
        yield admin
        for each in await admin.deployments():
            if each["id"] not in before:
                await admin.remove_deployment(each["id"])


@pytest.fixture
def perdure(server: RestateServer) -> Command:
    async def run(*words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(run_perdure, *words, PERDURE_ADMIN_URL=server.admin, COLUMNS="200")

    return run


async def test_new_version_replaces_and_drains_old_one(server, admin, perdure):
    async with (
        listening(build_app(orders())) as old,
        listening(build_app(orders())) as new,
        IngressClient(server.ingress) as ingress,
    ):
        for _ in range(2):  # an address can be registered again
            first = await perdure("register", old.url)
            assert (first.returncode, first.stdout) == (0, f"registered {old.url}: DeployedOrders\n"), first.stderr
        waiting = await ingress.send(WAIT, key="a")
        await eventually(lambda: admin.query(f"select id from sys_invocation where id = '{waiting}'"), what="call")

        refused = await perdure("register", new.url)
        assert refused.returncode == 1
        assert f"DeployedOrders already runs at {old.url}" in refused.stderr
        assert "repeat with --replace" in refused.stderr
        replaced = json.loads((await perdure("register", new.url, "--replace", "--json")).stdout)
        assert replaced["services"] == {new.url: ["DeployedOrders"]}
        assert replaced["old_versions"] == [old.url]
        await eventually(
            lambda: admin.query(
                f"select id from sys_invocation_status where id = '{waiting}' and pinned_deployment_id is not null"
            ),
            what="pinned invocation",
        )

        listed = json.loads((await perdure("deployments", "list", "--json")).stdout)["deployments"]
        versions = {each["url"]: (each["current"], each["open_invocations"]) for each in listed}
        assert (versions[old.url], versions[new.url]) == (([], 1), (["DeployedOrders"], 0))
        assert "(old version)" in (await perdure("deployments", "list")).stdout

        in_use = await perdure("deployments", "forget", old.url)
        assert (in_use.returncode, "has 1 open invocations: " in in_use.stderr) == (1, True)
        busy = await perdure("deployments", "drain", "DeployedOrders", "--wait", "0")
        assert (busy.returncode, f"{old.url} still has open invocations after 0 s" in busy.stderr) == (1, True)
        await admin.control_invocation(waiting, "kill")
        drained = await perdure("deployments", "drain", "DeployedOrders", "--json")
        assert json.loads(drained.stdout) == {"removed": [old.url]}
        assert await old_versions(admin, ["DeployedOrders"]) == []

        current = await perdure("deployments", "forget", new.url)
        assert "receives the invocations of DeployedOrders" in current.stderr
        gone = await perdure("deployments", "forget", new.url, "--force")
        assert gone.stdout == f"Removed the deployment at {new.url} (DeployedOrders).\n"
        unknown = await perdure("deployments", "forget", new.url)
        assert (unknown.returncode, f"there is no deployment '{new.url}'" in unknown.stderr) == (1, True)


async def test_refuse_service_of_another_application(server, admin, perdure):
    async with listening(build_app(orders(), stock())) as theirs, listening(build_app(orders())) as mine:
        assert (await perdure("register", theirs.url)).returncode == 0
        refused = await perdure("register", mine.url)
        assert refused.returncode == 1
        assert f"runs at {theirs.url}, with DeployedStock, which {mine.url} does not serve" in refused.stderr
        assert mine.url not in [str(each["uri"]).rstrip("/") for each in await admin.deployments()]


async def test_registration_waits_and_names_unreachable_process(perdure):
    unreachable = await perdure("register", "http://127.0.0.1:9", "--wait", "0.2")
    assert unreachable.returncode == 1
    assert "http://127.0.0.1:9 could not be registered" in unreachable.stderr
    malformed = await perdure("register", "orders:9080")
    assert (malformed.returncode, "write http://host:port" in malformed.stderr) == (1, True)
