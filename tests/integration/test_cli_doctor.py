"""`perdure doctor`: comparison of served and registered handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from typer.testing import CliRunner

from perdure import ControlPlaneService, DataPlaneContext, DataPlaneService, Orchestration, Target
from perdure._runtime.asgi import Receive, Scope, Send
from perdure.cli import options
from perdure.cli.main import app
from perdure.engine.admin import AdminClient
from perdure.engine.deployments import DeploymentError, Registration, register
from perdure.saga import hosting
from perdure.security.platform import PLATFORM_SETTING
from perdure.serving import Servable, build_app, listening
from perdure.testing import Mode, RestateServer
from perdure.testing.plugin import RestateServers

OTHER_ENGINE = "publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"


def shop(*, extended: bool) -> Servable:
    service = DataPlaneService("DoctoredShop")

    @service.handler()
    async def sell(ctx: DataPlaneContext, what: str) -> str:
        return what

    if extended:

        @service.handler()
        async def take_back(ctx: DataPlaneContext, what: str) -> str:
            return what

    return service


def store() -> Servable:
    service = DataPlaneService("DoctoredStore")

    @service.handler()
    async def keep(ctx: DataPlaneContext, what: str) -> str:
        return what

    return service


@pytest.fixture
async def admin(server: RestateServer) -> AsyncIterator[AdminClient]:
    """Admin client that removes the registrations of the test."""
    async with AdminClient(server.admin) as admin:
        before = {each["id"] for each in await admin.deployments()}
        yield admin
        for each in await admin.deployments():
            if each["id"] not in before:
                await admin.remove_deployment(each["id"])


@pytest.fixture
def server(restate_servers: RestateServers, monkeypatch: pytest.MonkeyPatch) -> RestateServer:
    """An engine, with a terminal that does not wrap lines."""
    monkeypatch.setattr(options.console, "_width", 400)
    return restate_servers.for_mode(Mode.HTTP2)


async def run_doctor(server: RestateServer, url: str) -> tuple[str, list[str]]:
    """Return the finding for a deployment, and all findings."""
    command = ["doctor", "--ingress", server.ingress, "--admin", server.admin]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert "Traceback" not in result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    (line,) = (each for each in lines if f"services at {url} " in each)
    return line, lines


async def test_report_unregistered_handler(server, admin):
    async with listening(build_app(shop(extended=False))) as listener:
        await admin.register(listener.url)
        healthy = f"ok services at {listener.url} DoctoredShop; ready, with the registered handlers"
        assert (await run_doctor(server, listener.url))[0] == healthy
    async with listening(build_app(shop(extended=True)), port=listener.port):
        await admin.register(listener.url, force=False)  # the engine returns 200 and keeps the old handlers
        line, _ = await run_doctor(server, listener.url)
        assert line.startswith(f"!! services at {listener.url} handlers differ from the registered ones")
        assert '(DoctoredShop/take_back); register them again with "force": true' in line
        await admin.register(listener.url)
        assert (await run_doctor(server, listener.url))[0] == healthy


async def test_protected_discovery_is_reported_once(server, admin):
    services = [shop(extended=False), store()]
    async with listening(build_app(services[0])) as one, listening(build_app(services[1])) as two:
        await admin.register(one.url)
        await admin.register(two.url)
    signed = [build_app(each, identity_keys=[OTHER_ENGINE]) for each in services]
    async with listening(signed[0], port=one.port), listening(signed[1], port=two.port):
        line, lines = await run_doctor(server, one.url)
    assert line == f"ok services at {one.url} DoctoredShop; ready"
    (summary,) = (each for each in lines if "only the engine may discover" in each)
    assert summary.startswith("ok handlers those of 2 deployments not compared, since only the engine")


@pytest.mark.parametrize("status", [500, 404])
async def test_report_failed_discovery(server, admin, status):
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        code = status if scope["path"] == "/discover" else 200
        await send({"type": "http.response.start", "status": code, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with listening(build_app(shop(extended=False))) as listener:
        await admin.register(listener.url)
    async with listening(refusing, port=listener.port):
        line, lines = await run_doctor(server, listener.url)
    assert line.startswith(f"!! services at {listener.url} (DoctoredShop) return {status} for /discover ")
    assert not any("only the engine may discover" in each for each in lines)


def sagas(name: str) -> list[Servable]:
    """A platform of its own: a saga that calls a handler with another type, and the services of sagas."""
    orders = ControlPlaneService(name)
    sell = Target("DoctoredShop", "sell", int, str)
    gone = Target("DoctoredShop", "gone", None, None)

    @orders.main
    async def run(cp: Orchestration) -> None:
        await cp.call(sell, 5)
        await cp.call(gone)

    return [orders, *hosting.definitions()]


async def test_report_calls_that_would_fail(server, admin):
    async with listening(build_app(shop(extended=False), *sagas("DoctoredOrders"))) as listener:
        await admin.register(listener.url)
        _, lines = await run_doctor(server, listener.url)
    caller, misfit = "!! targets DoctoredOrders calls DoctoredShop", "the value is an integer, not a string"
    assert [line for line in lines if line.startswith("!! targets")] == [
        f"{caller}/gone, but 'DoctoredShop' has no handler 'gone', only sell",
        f"{caller}/sell, but its input does not fit: {misfit}",
    ]


async def test_second_platform_is_refused_and_reported(server, admin, monkeypatch):
    monkeypatch.setenv(PLATFORM_SETTING, "east")
    east = build_app(*sagas("DoctoredEast"))
    monkeypatch.setenv(PLATFORM_SETTING, "west")
    west = build_app(*sagas("DoctoredWest"))
    async with listening(east) as one, listening(west) as two:
        await register(admin, [Registration("saga", one.url, ("Rollbacks", "DeadLetters"))])
        with pytest.raises(DeploymentError, match=r"saga at .* not registered: different platforms serve DeadLetters"):
            await register(admin, [Registration("saga", two.url)], elsewhere="move")
        registered = {str(each["uri"]).rstrip("/") for each in await admin.deployments()}
        assert (one.url in registered, two.url in registered) == (True, False)
        await admin.register(two.url)
        _, lines = await run_doctor(server, two.url)
        assert any(line.startswith("!! platforms different platforms serve Rollbacks, at") for line in lines)
