"""Requests during and after a kill -9 of the engine: no good request gets an answer that only looks final."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk

from perdure import IngressClient, Target
from perdure.engine.admin import AdminClient
from perdure.errors import EngineError, NotReady, NotRegistered

pytestmark = [pytest.mark.restate_modes("http2"), pytest.mark.timeout(300)]

RESTARTS = 10
SERVICES = 50
# More attempts than a restart on a loaded machine takes.
ATTEMPTS = 30


def services():
    """Return many services, since their number delays the start of the engine's ingress."""
    named = []
    for number in range(SERVICES):
        service = sdk.Service(f"Echo{number}")

        @service.handler()
        async def echo(ctx: sdk.Context, text: str) -> str:
            return text

        named.append(service)
    flow = sdk.Workflow("Flow")

    @flow.main()
    async def run(ctx: sdk.WorkflowContext, text: str) -> str:
        return await ctx.promise("word", type_hint=str).value() if text == "wait" else text

    return [*named, flow]


run = Target("Flow", "run", str, str)


async def test_requests_survive_killed_engine(restate, engine):
    env = await restate.serve(*services())
    async with (
        IngressClient(env.ingress, max_attempts=ATTEMPTS) as ingress,
        AdminClient(env.admin) as admin,
    ):
        waiting = await ingress.submit(run, "wait", key=str(uuid4()))
        ended = str(uuid4())
        await ingress.submit(run, "done", key=ended)
        await ingress.attach(run, key=ended)
        for restart in range(RESTARTS):
            await engine.engine.kill()
            async with asyncio.TaskGroup() as group:
                for number in range(SERVICES):
                    echo = Target(f"Echo{number}", "echo", str, str)
                    group.create_task(ingress.send(echo, "x", idempotency_key=f"{restart}-{number}"))
                    group.create_task(ingress.submit(run, "x", key=f"{ended}-{restart}-{number}"))
                reads = [group.create_task(ingress.attach(run, key=ended)) for _ in range(5)]
                await engine.engine.start()
                await admin.query("select id from sys_invocation limit 1")
                await admin.control_invocation(waiting, "resume")
            assert [read.result() for read in reads] == ["done"] * 5
            with pytest.raises(NotReady):
                await ingress.output(run, invocation_id=waiting)
        await admin.control_invocation(waiting, "kill")


async def test_request_waits_for_registration(restate, engine):
    late = sdk.Service("Late")

    @late.handler()
    async def echo(ctx: sdk.Context, text: str) -> str:
        return text

    target = Target("Late", "echo", str, str)
    async with IngressClient(engine.ingress, registration_timeout=timedelta(minutes=1)) as ingress:
        early = asyncio.create_task(ingress.call(target, "x"))
        with pytest.raises(NotRegistered):
            async with IngressClient(engine.ingress, registration_timeout=timedelta(0)) as hasty:
                await hasty.call(target, "x")
        await restate.serve(late)
        assert await early == "x"


async def test_unregistered_service_is_reported_within_seconds(restate, engine):
    async with IngressClient(engine.ingress) as ingress:
        with pytest.raises(NotRegistered, match=r"^service 'Nowhere' not found.* not registered within 5 s"):
            await asyncio.wait_for(ingress.call(Target("Nowhere", "run", str, str), "x"), 30)


async def test_stopped_admin_api_performs_no_action(restate, engine):
    async with AdminClient(engine.admin) as admin:
        await engine.engine.kill()
        with pytest.raises(EngineError) as failed:
            await admin.control_invocation("inv_1aiqX0vFEFNH1Umgre58JiCLgHfTtztYK5", "kill")
        assert failed.value.acceptance == "not accepted"
        await engine.engine.start()
