"""Engine proxy in front of a real engine on Unix sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import restate

from perdure import IngressClient, Target
from perdure._runtime.invocation_ids import pending_id, signal_id
from perdure._runtime.ports import free_ports
from perdure.engine import EngineConfig, EngineProcess, locate_engine
from perdure.engine.admin import AdminClient
from perdure.engine.proxy import ProxySettings
from perdure.engine.proxy.process import serve_proxy_async
from perdure.errors import ConfigurationError, EngineError, IngressError
from perdure.serving import build_app
from perdure.serving.server import listening
from perdure.testing.plugin import RestateServers
from tests.support import eventually

EVIL = {"origin": "https://evil.example.com"}
SHOP = {"origin": "https://shop.example.com"}

service = restate.Service("Echo")
released = asyncio.Event()


@service.handler()
async def size(ctx: restate.Context, body: list[str]) -> int:
    return sum(len(each) for each in body)


@service.handler()
async def repeat(ctx: restate.Context, count: int) -> str:
    return "x" * count


@service.handler()
async def wait(ctx: restate.Context) -> str:
    id_, promise = ctx.awakeable()
    await ctx.run_typed("publish", lambda: waiting.append(id_))
    return str(await promise)


@service.handler()
async def hold(ctx: restate.Context) -> str:
    _, promise = ctx.awakeable()
    return str(await promise)


waiting: list[str] = []


async def published(before: int) -> str:
    """Return the awakeable of the next waiting call."""
    await eventually(lambda: len(waiting) > before, what="a waiting call")
    return waiting[before]


@pytest.fixture(scope="module")
def binary(restate_servers: RestateServers) -> Path:
    return locate_engine(restate_servers.install_dir).path


class Guarded:
    """Engine on sockets, and its proxy."""

    def __init__(self, engine: EngineProcess, settings: ProxySettings) -> None:
        self.engine = engine
        self.ingress = f"http://127.0.0.1:{settings.ingress_port}"
        self.admin = f"http://127.0.0.1:{settings.admin_port}"
        self.http = httpx.AsyncClient(timeout=20)


def config_in(folder: Path) -> EngineConfig:
    (node,) = free_ports(1)
    return EngineConfig(
        data_dir=folder / "data", node_port=node, partitions=1, rocksdb_memory=128 * 1024 * 1024, sockets=True
    )


@asynccontextmanager
async def proxied(config: EngineConfig, **settings: object) -> AsyncIterator[ProxySettings]:
    ingress, admin = free_ports(2)
    chosen = ProxySettings(
        ingress_upstream=f"unix:{config.ingress_socket}",
        admin_upstream=f"unix:{config.admin_socket}",
        ingress_port=ingress,
        admin_port=admin,
        **settings,
    )
    stop = asyncio.Event()
    task = asyncio.create_task(serve_proxy_async(chosen, stop))
    try:
        async with httpx.AsyncClient() as http:
            await eventually(lambda: _up(http, f"http://127.0.0.1:{admin}/health"), what="proxy")
        yield chosen
    finally:
        stop.set()
        await task


async def _up(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
async def guarded(binary: Path, tmp_path: Path) -> AsyncIterator[Guarded]:
    # A deep folder, so that the paths of the sockets exceed the limit of the system.
    config = config_in(tmp_path / ("deep" * 20))
    async with (
        EngineProcess(binary, config) as engine,
        proxied(config, allowed_origins=(SHOP["origin"],)) as settings,
        listening(build_app(service)) as listener,
    ):
        found = Guarded(engine, settings)
        async with AdminClient(found.admin) as admin:
            await admin.register(listener.url)
        yield found
        await found.http.aclose()


async def test_program_calls_and_reads(guarded):
    called = await guarded.http.post(f"{guarded.ingress}/Echo/size", json=["ab", "c"])
    assert (called.status_code, called.text) == (200, "3")
    assert not [name for name in called.headers if name.startswith("access-control-")]
    async with AdminClient(guarded.admin) as admin:
        assert await admin.query("select 1 as one") == [{"one": 1}]


async def test_proxy_forwards_body_of_32_mib(guarded):
    body = json.dumps(["x" * (31 * 1024 * 1024)]).encode()
    url, headers, whole = f"{guarded.ingress}/Echo/size", {"content-type": "application/json"}, str(31 * 1024 * 1024)
    assert (await guarded.http.post(url, content=body, headers=headers)).text == whole

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 64 * 1024):
            yield body[start : start + 64 * 1024]

    assert (await guarded.http.post(url, content=chunks(), headers=headers)).text == whole
    long = await guarded.http.post(f"{guarded.ingress}/Echo/repeat", json=20_000_000)
    assert len(long.json()) == 20_000_000


async def test_engine_refuses_body_over_limit(guarded):
    answer = await guarded.http.post(f"{guarded.ingress}/Echo/size", content=b" " * (40 * 1024 * 1024))
    assert answer.status_code == 413


async def test_page_gets_refusal_without_cors(guarded):
    for method, url in (("POST", f"{guarded.ingress}/Echo/size"), ("POST", f"{guarded.admin}/query")):
        for headers in (EVIL, {"sec-fetch-site": "cross-site"}, {"host": "evil.example.com"}):
            answer = await guarded.http.request(method, url, headers=headers, json=["a"])
            assert (answer.status_code, answer.headers["x-perdure-proxy"]) == (403, "refused")
            assert "x-restate-error-source" not in answer.headers
            assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_allowed_page_gets_cors_without_credentials(guarded):
    preflight = await guarded.http.options(
        f"{guarded.ingress}/Echo/size", headers={**SHOP, "access-control-request-method": "POST"}
    )
    assert preflight.headers["access-control-allow-origin"] == SHOP["origin"]
    called = await guarded.http.post(f"{guarded.ingress}/restate/health", headers=SHOP)
    assert called.headers["access-control-allow-origin"] == SHOP["origin"]
    assert "access-control-allow-credentials" not in {**preflight.headers, **called.headers}
    assert (await guarded.http.get(f"{guarded.admin}/services", headers=SHOP)).status_code == 403


async def test_long_call_outlives_clients_that_leave(guarded):
    async with IngressClient(guarded.ingress) as client:
        before = len(waiting)
        call = asyncio.create_task(guarded.http.post(f"{guarded.ingress}/Echo/wait", timeout=None))
        id_ = await published(before)
        with pytest.raises(httpx.ReadTimeout):
            await guarded.http.post(f"{guarded.ingress}/Echo/wait", timeout=httpx.Timeout(20, read=0.2))
        await published(before + 1)
        await client.resolve_awakeable(id_, "answered")
        assert (await call).text == '"answered"'


async def test_completion_of_other_results_is_refused(guarded):
    sent = await guarded.http.post(guarded.ingress + "/Echo/hold/send")
    invocation = sent.json()["invocationId"]
    for prefix in ("/restate/awakeables", "/restate/a", "/restate/%61wakeables", "/%72estate/a"):
        for forged in (pending_id(invocation, 1), signal_id(invocation, 1), signal_id(invocation, 16)):
            answer = await guarded.http.post(f"{guarded.ingress}{prefix}/{forged}/resolve", json="forged")
            assert (answer.status_code, answer.headers["x-perdure-proxy"]) == (403, "refused")
    answer = await guarded.http.post(
        f"{guarded.ingress}/restate/awakeables/{signal_id(invocation)}/resolve", json="genuine"
    )
    assert answer.status_code == 202
    result = await guarded.http.get(f"{guarded.ingress}/restate/invocation/{invocation}/attach")
    assert result.json() == "genuine"


async def test_report_unreachable_engine_as_not_sent(guarded):
    await guarded.engine.kill()
    answer = await guarded.http.post(f"{guarded.ingress}/Echo/size", json=["a"])
    assert (answer.status_code, answer.headers["x-perdure-proxy"]) == (503, "not-sent")
    async with IngressClient(guarded.ingress, max_attempts=1) as client:
        with pytest.raises(IngressError, match="accepts no connection") as failed:
            await client.resolve_awakeable(signal_id("inv_1fcocvNP6Lvi5nwVkzr9cz2SgHhoc7xOWG"), "a")
    assert (failed.value.status_code, failed.value.source) == (0, None)
    async with AdminClient(guarded.admin) as admin:
        assert not await admin.healthy()
        with pytest.raises(EngineError, match="does not answer") as silent:
            await admin.services()
    assert silent.value.status_code == 0


async def test_health_of_proxy_needs_no_engine(guarded):
    await guarded.engine.kill()
    for url in (guarded.ingress, guarded.admin):
        assert (await guarded.http.get(f"{url}/-/healthy")).status_code == 200


async def test_report_killed_engine_as_unknown_outcome(guarded):
    before = len(waiting)
    call = asyncio.create_task(guarded.http.post(f"{guarded.ingress}/Echo/wait", timeout=None))
    await published(before)
    await guarded.engine.kill()
    answer = await call
    assert (answer.status_code, answer.headers["x-perdure-proxy"]) == (502, "unknown-outcome")


async def test_clients_reconnect_after_engine_restart(guarded):
    await guarded.engine.kill()
    async with IngressClient(guarded.ingress, max_attempts=9) as client:
        called = asyncio.create_task(client.call(Target("Echo", "repeat", int, str), 3))
        await guarded.engine.start()
        assert await called == "xxx"


async def test_engine_on_sockets_opens_no_port(binary, tmp_path):
    config = config_in(tmp_path)
    async with EngineProcess(binary, config) as engine, httpx.AsyncClient() as http:
        for url in (engine.ingress_url, engine.admin_url):
            with pytest.raises(httpx.ConnectError):
                await http.get(f"{url}/health")


async def test_taken_port_is_named(tmp_path):
    config = config_in(tmp_path)
    config.ingress_socket.parent.mkdir(parents=True)
    async with listening(build_app(service)) as other:
        settings = ProxySettings(ingress_upstream=f"unix:{config.ingress_socket}", ingress_port=other.port)
        with pytest.raises(ConfigurationError, match="PERDURE_PROXY_INGRESS_PORT"):
            await serve_proxy_async(settings, asyncio.Event())
