"""`perdure invocations` on a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk
from typer.testing import CliRunner, Result

from perdure import IngressClient, Target, handler
from perdure.cli.main import app
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import EngineError
from tests.support import Recording, eventually

UNKNOWN_ID = "inv_15LpVVpSykhC7cReWaZPCwr7ZiC815BgQy"

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


async def run_command(admin: AdminClient, *words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["invocations", *words, "--admin", admin.url])


async def await_status(admin: AdminClient, invocation: str, expected: Callable[[str], bool]) -> str:
    async def probe() -> str | None:
        (row,) = await admin.query(f"select status from sys_invocation where id = {sql_text(invocation)}")
        return row["status"] if expected(row["status"]) else None

    return await eventually(probe, what="the expected status")


async def test_resume_cancel_and_kill(restate, did):
    env = await restate.serve(waiting_room(did))
    async with AdminClient(env.admin) as admin, IngressClient(env.ingress) as ingress:
        names = [f"{name}-{uuid4()}" for name in ("cancelled", "killed")]
        cancelled, killed = [await ingress.send(wait, name) for name in names]

        await await_status(admin, cancelled, lambda status: status in ("running", "suspended"))
        await admin.control_invocation(cancelled, "pause")
        await await_status(admin, cancelled, lambda status: status == "paused")
        result = await run_command(admin, "resume", cancelled)
        assert (result.exit_code, result.output) == (0, f"{cancelled}: Resumed.\n")
        await await_status(admin, cancelled, lambda status: status != "paused")

        result = await run_command(admin, "cancel", cancelled)
        assert (result.exit_code, result.output) == (0, f"{cancelled}: Cancellation requested.\n")
        await await_status(admin, cancelled, lambda status: status == "completed")
        result = await run_command(admin, "kill", killed)
        assert (result.exit_code, result.output) == (0, f"{killed}: Killed.\n")
        await await_status(admin, killed, lambda status: status == "completed")
        assert did.all() == [f"ended {names[0]}"]

        late = await run_command(admin, "resume", cancelled)
        assert late.exit_code == 1
        assert isinstance(late.exception, EngineError)
        assert "is completed, cannot be resumed" in str(late.exception)


@pytest.mark.parametrize("action", ["resume", "cancel", "kill"])
@pytest.mark.parametrize("invocation", ["nonsense", "inv_1234", UNKNOWN_ID])
async def test_unknown_invocation_is_one_sentence(restate, did, action, invocation):
    env = await restate.serve(waiting_room(did))
    async with AdminClient(env.admin) as admin:
        result = await run_command(admin, action, invocation)
    assert result.exit_code == 1
    assert str(result.exception) == (
        f"invocation '{invocation}' does not exist or has ended; `perdure doctor` shows stuck invocations"
    )
