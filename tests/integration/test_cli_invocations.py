"""`perdure invocations`, as an operator types it, on a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk
from typer.testing import CliRunner, Result

from perdure import AdminClient, IngressClient, Target, handler
from perdure.cli.main import app
from perdure.engine.admin import sql_text
from perdure.errors import EngineError
from tests.support import Recording, eventually

NOBODYS = "inv_15LpVVpSykhC7cReWaZPCwr7ZiC815BgQy"

pytestmark = pytest.mark.restate_modes("http2")


def waiting_room(did: Recording) -> sdk.Service:
    service = sdk.Service("WaitingRoom")

    @handler(service)
    async def wait(ctx: sdk.Context, name: str) -> str:
        try:
            await ctx.sleep(timedelta(hours=1))
        except sdk.TerminalError:
            did.add(f"ended {name}")
            raise
        return name

    return service


wait = Target("WaitingRoom", "wait", str, str)


async def typed(admin: AdminClient, *words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["invocations", *words, "--admin", admin.url])


async def stands(admin: AdminClient, invocation: str, ended: Callable[[str], bool]) -> str:
    async def probe() -> str | None:
        (row,) = await admin.query(f"select status from sys_invocation where id = {sql_text(invocation)}")
        return row["status"] if ended(row["status"]) else None

    return await eventually(probe, what="change of the invocation's status")


async def test_one_that_is_paused_is_resumed_and_one_that_runs_is_cancelled_or_killed(restate, did):
    env = await restate.serve(waiting_room(did))
    async with AdminClient(env.admin) as admin, IngressClient(env.ingress) as ingress:
        names = [f"{what}-{uuid4()}" for what in ("cancelled", "killed")]
        cancelled, killed = [await ingress.send(wait, name) for name in names]

        await stands(admin, cancelled, lambda status: status in ("running", "suspended"))
        await admin.control_invocation(cancelled, "pause")
        await stands(admin, cancelled, lambda status: status == "paused")
        result = await typed(admin, "resume", cancelled)
        assert (result.exit_code, result.output) == (0, f"{cancelled}: resumed\n")
        await stands(admin, cancelled, lambda status: status != "paused")

        result = await typed(admin, "cancel", cancelled)
        assert (result.exit_code, result.output) == (0, f"{cancelled}: asked to end\n")
        await stands(admin, cancelled, lambda status: status == "completed")
        result = await typed(admin, "kill", killed)
        assert (result.exit_code, result.output) == (0, f"{killed}: killed\n")
        await stands(admin, killed, lambda status: status == "completed")
        assert did.all() == [f"ended {names[0]}"]

        late = await typed(admin, "resume", cancelled)
        assert late.exit_code == 1
        assert isinstance(late.exception, EngineError)
        assert "is completed, cannot be resumed" in str(late.exception)


@pytest.mark.parametrize("act", ["resume", "cancel", "kill"])
@pytest.mark.parametrize("invocation", ["nonsense", "inv_1234", NOBODYS])
async def test_what_is_no_invocation_is_one_sentence(restate, did, act, invocation):
    env = await restate.serve(waiting_room(did))
    async with AdminClient(env.admin) as admin:
        result = await typed(admin, act, invocation)
    assert result.exit_code == 1
    assert str(result.exception) == (
        f"there is no invocation '{invocation}' (any more); `perdure doctor` names one of each kind that is stuck"
    )
