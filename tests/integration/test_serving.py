"""Served handlers with a real engine, in each mode."""

from __future__ import annotations

import asyncio
import io
import logging
import os
from datetime import timedelta
from uuid import uuid4

import httpx
import pytest
import restate as sdk

from perdure.engine.admin import AdminClient, sql_text
from perdure.observability.logging import get_logger
from perdure.serving import build_app, listening
from perdure.testing import Mode, Restate, RestateServer
from perdure.testing.plugin import RestateServers
from tests.support import PATIENCE, eventually, lines

pytestmark = pytest.mark.restate_modes("all")

log = get_logger("tests.handlers")

steps = sdk.Service("ServingSteps")
counter = sdk.VirtualObject("ServingCounter")


@steps.handler()
async def three(ctx: sdk.Context, name: str) -> str:
    done = []
    for number in range(3):
        done.append(await ctx.run_typed(f"step-{number}", lambda number=number: f"{name}{number}"))
        log.info("step done", number=number)
        logging.getLogger("tests.plain").info("step %d done", number)
        await ctx.sleep(timedelta(milliseconds=1))
    return " ".join(done)


@counter.handler()
async def add(ctx: sdk.ObjectContext, amount: int) -> int:
    total = (await ctx.get("total", type_hint=int) or 0) + amount
    ctx.set("total", total)
    log.info("added", total=total)
    return total


@counter.handler()
async def wait(ctx: sdk.ObjectContext, seconds: float) -> None:
    await ctx.sleep(timedelta(seconds=seconds))


async def test_service_responds(restate: Restate):
    env = await restate.serve(steps)
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{env.ingress}/ServingSteps/three", json="a")
    assert answer.json() == "a0 a1 a2"


async def test_log_lines_contain_invocation_and_skip_replay(restate: Restate, logged: io.StringIO):
    env = await restate.serve(steps, counter)
    key = uuid4().hex
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{env.ingress}/ServingSteps/three", json="a")
        (await http.post(f"{env.ingress}/ServingCounter/{key}/add", json=4)).raise_for_status()

    invocation = {"invocation_id": answer.headers["x-restate-id"], "service": "ServingSteps", "handler": "three"}
    done = lines(logged, event="step done", **invocation)
    # An attempt does not know which entry is the last one of the replay, so the next line may be logged once more.
    assert sorted({line["number"] for line in done}) == [0, 1, 2]
    assert len(done) <= 6
    assert len(lines(logged, event="step 0 done", **invocation)) <= 2
    assert all("key" not in line for line in done)
    (added,) = lines(logged, event="added")
    assert (added["service"], added["handler"], added["key"], added["total"]) == ("ServingCounter", "add", key, 4)


@pytest.mark.restate_modes("http2")
async def test_engine_modes_are_configurable(restate: Restate):
    assert restate.mode is Mode.HTTP2


@pytest.mark.restate_modes("http2", "request_response")
@pytest.mark.parametrize("status", [401, 404])
async def test_refusal_reaches_engine_at_once(restate: Restate, status: int):
    """Granian sends headers with the first chunk, which the SDK holds back until the request has ended."""
    http1 = restate.mode is Mode.REQUEST_RESPONSE
    expected = build_app(steps)
    refusing = (
        build_app(steps, identity_keys=["publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"])
        if status == 401
        else build_app(counter)
    )
    async with AdminClient(restate.server.admin) as admin, httpx.AsyncClient() as http:
        async with listening(expected, http="1" if http1 else "2") as listener:
            await admin.register(listener.url, use_http_11=http1)
        async with listening(refusing, port=listener.port, http="1" if http1 else "2"):
            sent = await http.post(f"{restate.server.ingress}/ServingSteps/three/send", json="a")
            invocation = sent.json()["invocationId"]

            async def failure() -> str | None:
                rows = await admin.query(f"select last_failure from sys_invocation where id = {sql_text(invocation)}")
                return rows[0].get("last_failure") if rows else None

            reason = await eventually(failure, what="failed attempt", within=30)
            assert str(status) in reason
            await admin.control_invocation(invocation, "kill")
        for deployment in await admin.deployments():
            if str(deployment["uri"]).rstrip("/") == listener.url:
                await admin.remove_deployment(deployment["id"])


async def test_one_port_speaks_both_protocols():
    """Probes use HTTP/1.1, the engine uses HTTP/2."""
    async with listening(build_app(steps)) as listener, httpx.AsyncClient() as http:
        assert (await http.get(f"{listener.url}/health")).json() == {"status": "ok"}
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        frame = await asyncio.wait_for(reader.readexactly(9), PATIENCE)
        writer.close()
    assert frame[3] == 4, "the server answers with its settings"


async def test_fixture_ends_invocations_left_running(restate_servers: RestateServers):
    server = restate_servers.for_mode(Mode.HTTP2)
    restate = Restate(server, Mode.HTTP2)
    env = await restate.serve(counter)
    async with AdminClient(server.admin) as admin, httpx.AsyncClient() as http:
        sent = await http.post(f"{env.ingress}/ServingCounter/{uuid4().hex}/wait/send", json=3600)
        by_id = f"select status from sys_invocation where id = {sql_text(sent.json()['invocationId'])}"

        await restate.close()

        assert [row["status"] for row in await admin.query(by_id)] == ["completed"]
        assert env.url not in [str(each["uri"]).rstrip("/") for each in await admin.deployments()]
        with pytest.raises(httpx.ConnectError):
            await http.get(env.url)


def test_closed_test_server_leaves_no_files(restate_servers: RestateServers):
    with RestateServer(install_dir=restate_servers.install_dir) as server:
        pid = server.engine.pid
        folder = server.engine.config.data_dir.parent
        assert pid is not None
        assert folder.is_dir()

    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="the server is not running"):
        _ = server.engine
