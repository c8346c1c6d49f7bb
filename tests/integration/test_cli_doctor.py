"""`perdure doctor` compares the handlers that are served with those that the engine knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from typer.testing import CliRunner

from perdure import DataPlaneContext, DataPlaneService
from perdure._runtime.asgi import Receive, Scope, Send
from perdure.cli import options
from perdure.cli.main import app
from perdure.engine.admin import AdminClient
from perdure.serving import Servable, build_app, listening
from perdure.testing import Mode, RestateServer
from perdure.testing.plugin import RestateServers

STRANGER = "publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"


def shop(*, grown: bool) -> Servable:
    service = DataPlaneService("DoctoredShop")

    @service.handler()
    async def sell(ctx: DataPlaneContext, what: str) -> str:
        return what

    if grown:

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
    """The engine, which forgets what this test has registered."""
    async with AdminClient(server.admin) as admin:
        before = {each["id"] for each in await admin.deployments()}
        yield admin
        for each in await admin.deployments():
            if each["id"] not in before:
                await admin.remove_deployment(each["id"])


@pytest.fixture
def server(restate_servers: RestateServers, monkeypatch: pytest.MonkeyPatch) -> RestateServer:
    """An engine, and a terminal that breaks no line."""
    monkeypatch.setattr(options.console, "_width", 400)
    return restate_servers.for_mode(Mode.HTTP2)


async def said(server: RestateServer, url: str) -> tuple[str, list[str]]:
    """Return the doctor's line about the services at an address, and all lines."""
    command = ["doctor", "--ingress", server.ingress, "--admin", server.admin]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert "Traceback" not in result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    (line,) = (each for each in lines if f"services at {url} " in each)
    return line, lines


async def test_a_handler_that_was_added_without_registering_again_is_found(server, admin):
    async with listening(build_app(shop(grown=False))) as listener:
        await admin.register(listener.url)
        well = f"ok services at {listener.url} DoctoredShop; ready, with the handlers that the engine knows"
        assert (await said(server, listener.url))[0] == well
    async with listening(build_app(shop(grown=True)), port=listener.port):
        await admin.register(listener.url, force=False)  # the engine answers 200, and keeps what it knew
        line, _ = await said(server, listener.url)
        assert line.startswith(f"!! services at {listener.url} serve other handlers than the engine knows")
        assert '(DoctoredShop/take_back): register again, with "force": true' in line
        await admin.register(listener.url)
        assert (await said(server, listener.url))[0] == well


async def test_that_only_the_engine_may_ask_is_said_once_for_all(server, admin):
    services = [shop(grown=False), store()]
    async with listening(build_app(services[0])) as one, listening(build_app(services[1])) as two:
        await admin.register(one.url)
        await admin.register(two.url)
    signed = [build_app(each, identity_keys=[STRANGER]) for each in services]
    async with listening(signed[0], port=one.port), listening(signed[1], port=two.port):
        line, lines = await said(server, one.url)
    assert line == f"ok services at {one.url} DoctoredShop; ready"
    (once,) = (each for each in lines if "only the engine may ask" in each)
    assert once.startswith("ok handlers those of 2 deployments can't be compared with what the engine knows: ")


@pytest.mark.parametrize("status", [500, 404])
async def test_what_else_is_answered_when_handlers_are_asked_for_is_told(server, admin, status):
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        code = status if scope["path"] == "/discover" else 200
        await send({"type": "http.response.start", "status": code, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with listening(build_app(shop(grown=False))) as listener:
        await admin.register(listener.url)
    async with listening(refusing, port=listener.port):
        line, lines = await said(server, listener.url)
    assert line.startswith(f"!! services at {listener.url} (DoctoredShop) answer {status} to /discover, ")
    assert not any("only the engine may ask" in each for each in lines)
