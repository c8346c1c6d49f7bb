"""The sentinel on a real engine: killed and paused orchestrations and killed rollbacks are looked after."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import (
    AdminClient,
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    ServiceClient,
    Target,
)
from perdure.admin import sql_text
from perdure.errors import EngineError, IngressError
from perdure.saga import hosting
from perdure.saga.messages import RollbackStatus, rollback_status
from perdure.saga.plan import Outcome
from perdure.saga.sentinel import Sentinel, SentinelConfig, SweepReport, look
from perdure.testing import Mode, Restate, RestateServer
from tests.support import Recording, eventually


class Part(BaseModel):
    key: str
    name: str


make = Target("Mill", "make", Part, type(None))
scrap = Target("Mill", "scrap", Part, type(None))
sweep = Target("Sentinel", "sweep", type(None), SweepReport)


class Brake:
    """Holds back one undo until it is released."""

    def __init__(self) -> None:
        self.held = ""
        self._released = threading.Event()

    async def passed(self, name: str) -> None:
        if name == self.held:
            assert await asyncio.to_thread(self._released.wait, 30)

    def release(self) -> None:
        self._released.set()


def services(did: Recording, name: str, brake: Brake) -> list[Any]:
    mill = DataPlaneService("Mill")

    @mill.handler("make")
    async def _make(ctx: DataPlaneContext, part: Part) -> None:
        await ctx.run("make", did.add, f"make {part.key}/{part.name}")

    @mill.handler("scrap")
    async def _scrap(ctx: DataPlaneContext, part: Part) -> None:
        async def do() -> None:
            did.add(f"scrapping {part.key}/{part.name}")
            await brake.passed(part.name)
            did.add(f"scrap {part.key}/{part.name}")

        await ctx.run("scrap", do)

    gives_up = sdk.InvocationRetryPolicy(
        initial_interval=timedelta(milliseconds=10), max_attempts=2, on_max_attempts="pause"
    )
    orders = ControlPlaneService(name, invocation_retry_policy=gives_up)

    @orders.compensation()
    async def scrap_part(ctx: sdk.Context, part: Part) -> None:
        await ServiceClient(ctx, scrap).call(part)

    @orders.main()
    async def run(cp: Orchestration, broken: bool) -> None:
        for part in ("a", "b"):
            await cp.step(part, make, Part(key=cp.key, name=part), compensate=scrap_part)
        if broken:
            raise RuntimeError("a bug that no retry mends")
        _, never = cp.ctx.awakeable()
        await never

    return [mill, orders, *hosting.definitions()]


@pytest.fixture
def webhook():
    """A real HTTP server that remembers what it was told."""
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # an engine that many tests shared has much news at once

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", told
    server.shutdown()
    server.server_close()
    thread.join(10)


class Scene:
    def __init__(self, env: Any, name: str, sentinel: Sentinel, config: SentinelConfig) -> None:
        self.ingress = IngressClient(env.ingress)
        self.admin = AdminClient(env.admin)
        self.name = name
        self.sentinel = sentinel
        self.config = config

    async def started(self, did: Recording, *, broken: bool = False) -> tuple[str, str]:
        """Start an orchestration that waits for ever, or fails for ever, after two steps; return key and invocation."""
        key = str(uuid4())
        invocation = await self.ingress.send(Target(self.name, "run", bool, type(None)), broken, key=key)

        async def waiting() -> bool:
            return did.of(key) == ["make a", "make b"]

        await eventually(waiting, what="both steps")
        return key, invocation

    async def rollback(self, key: str, status: Outcome) -> RollbackStatus:
        async def probe() -> RollbackStatus | None:
            try:
                found = await self.ingress.call(rollback_status, key=f"{self.name}:{key}")
            except IngressError as error:
                if error.status_code == 404:
                    return None
                raise
            return found if found.status is status else None

        return await eventually(probe, what=f"rollback of {key} that is {status}")

    async def close(self) -> None:
        await self.ingress.close()
        await self.admin.close()


@pytest.fixture
async def scene(restate, did):
    scenes = []

    async def start(brake: Brake | None = None, **limits: Any) -> Scene:
        name = f"Mills{uuid4().hex[:8]}"
        config = SentinelConfig(
            admin_url=restate.server.admin,
            ingress_url=restate.server.ingress,
            interval=timedelta(milliseconds=100),
            grace=timedelta(milliseconds=1),
            **limits,
        )
        sentinel = Sentinel(config)
        env = await restate.serve(*services(did, name, brake or Brake()), sentinel)
        scenes.append(Scene(env, name, sentinel, config))
        return scenes[-1]

    yield start
    for each in scenes:
        await each.close()


async def test_a_killed_orchestration_is_rolled_back_once_and_somebody_is_told(scene, did, webhook):
    on = await scene(webhook_url=webhook[0])
    key, invocation = await on.started(did)
    async with on.sentinel.watching():
        await on.admin.act(invocation, "kill")
        rollback = await on.rollback(key, Outcome.ROLLED_BACK)
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]
    assert rollback.reason.startswith("the orchestration was lost: lost: [409] killed")

    async def heard() -> list[str]:
        return [each for each in webhook[1] if invocation in each and "sentinel.acted" in each]

    told = await eventually(heard, what="news of it")
    assert len(told) == 1
    assert '"reason":"lost: [409] killed' in told[0]

    # It stays in the engine's books for a day; another look does nothing more.
    again = await on.ingress.call(sweep, key="all")
    assert invocation not in {find.id for find in again.acted_on}
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]


async def test_a_running_or_closed_orchestration_is_left_alone(scene, did):
    on = await scene()
    key, invocation = await on.started(did)
    assert invocation not in {find.id for find in await look(on.admin, on.config)}
    await on.admin.act(invocation, "cancel")
    await on.rollback(key, Outcome.ROLLED_BACK)
    assert invocation not in {find.id for find in await look(on.admin, on.config)}
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]


async def test_an_orchestration_that_is_paused_too_long_is_killed_and_rolled_back(scene, did):
    on = await scene(paused_limit=timedelta(milliseconds=1))
    key, invocation = await on.started(did, broken=True)

    async def paused() -> bool:
        rows = await on.admin.query(f"select status from sys_invocation_status where id = {sql_text(invocation)}")
        return rows[0]["status"] == "paused"

    await eventually(paused, what="pause")
    async with on.sentinel.watching():
        rollback = await on.rollback(key, Outcome.ROLLED_BACK)
    assert rollback.reason.startswith("the orchestration was lost: paused")
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]


async def test_a_rollback_that_was_asked_for_and_never_began_is_begun(scene, did):
    on = await scene()
    key, invocation = await on.started(did)
    await on.admin.act(invocation, "cancel")
    await on.rollback(key, Outcome.ROLLED_BACK)
    # As if what was to begin the rollback had been killed: the orchestration has ended, and nobody knows of it.
    async with httpx.AsyncClient() as http:
        wiped = await http.post(
            f"{on.config.admin_url}/services/Rollbacks/state",
            json={"object_key": f"{on.name}:{key}", "new_state": {}},
        )
    assert wiped.is_success, wiped.text

    async def unopened() -> bool:
        finds = {find.id: find.kind for find in await look(on.admin, on.config)}
        return finds.get(invocation) == "unopened"

    await eventually(unopened, what="find of the saga without a rollback")
    async with on.sentinel.watching():
        await on.rollback(key, Outcome.ROLLED_BACK)
    assert did.of(key)[2:] == ["scrapping b", "scrap b", "scrapping a", "scrap a"]  # by the same invocations: once


@pytest.fixture
async def own_engine(restate_servers):
    """An engine of its own: the relay of this test is not the one that other tests' rollbacks need."""
    with RestateServer(install_dir=restate_servers.install_dir) as server:
        restate = Restate(server, Mode.HTTP2)
        yield restate
        await restate.close()


async def test_a_paused_relay_is_resumed(own_engine):
    relay = sdk.Service(
        "RollbackRelay",
        invocation_retry_policy=sdk.InvocationRetryPolicy(
            initial_interval=timedelta(milliseconds=10), max_attempts=1, on_max_attempts="pause"
        ),
    )
    mended = threading.Event()

    @relay.handler()
    async def start(ctx: sdk.Context, name: str) -> str:
        if not mended.is_set():
            raise RuntimeError("a bug that a deployment mends")
        return name

    config = SentinelConfig(
        admin_url=own_engine.server.admin,
        ingress_url=own_engine.server.ingress,
        interval=timedelta(milliseconds=100),
        grace=timedelta(milliseconds=1),
    )
    sentinel = Sentinel(config)
    env = await own_engine.serve(relay, sentinel)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        call = asyncio.create_task(ingress.call(Target("RollbackRelay", "start", str, str), "x"))

        async def halted() -> bool:
            try:
                return any(find.kind == "halted" for find in await look(admin, config))
            except EngineError:  # an engine that has just started refuses queries for a moment
                return False

        await eventually(halted, what="find of the paused relay")
        mended.set()
        async with sentinel.watching():
            assert await asyncio.wait_for(call, 20) == "x"


async def test_a_killed_rollback_is_set_going_again_and_undoes_each_step_once(scene, did):
    brake = Brake()
    brake.held = "b"
    on = await scene(brake)
    key, invocation = await on.started(did)
    await on.admin.act(invocation, "cancel")

    async def held() -> str | None:
        if did.count(f"scrapping {key}/b") == 0:
            return None
        rows = await on.admin.query(
            "select id from sys_invocation_status where target_service_name = 'Rollbacks' and status != 'completed' "
            f"and target_handler_name = 'run' and target_service_key = {sql_text(f'{on.name}:{key}')}"
        )
        return rows[0]["id"] if rows else None

    rollback = await eventually(held, what="rollback that undoes step b")
    await on.admin.act(rollback, "kill")
    brake.release()
    async with on.sentinel.watching():
        await on.rollback(key, Outcome.ROLLED_BACK)
    done = [entry for entry in did.of(key) if entry.startswith("scrap ")]
    assert done[-1] == "scrap a"
    assert done.count("scrap a") == 1
