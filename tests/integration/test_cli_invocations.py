"""`perdure invocations` on a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk
from typer.testing import CliRunner, Result

from perdure import ControlPlaneService, IngressClient, IngressError, Orchestration, Target, handler
from perdure.cli.invocations import InvocationReceipt
from perdure.cli.main import app
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import EngineError
from perdure.saga import hosting
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
    command = ["invocations", *words, "--admin", admin.url]
    return await asyncio.to_thread(CliRunner(env={"PERDURE_ADMIN_URL": admin.url}).invoke, app, command)


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
        assert result.exit_code == 0
        assert result.output.startswith(f"WaitingRoom/wait {cancelled}: Resumed. Status: ")
        await await_status(admin, cancelled, lambda status: status != "paused")

        result = await run_command(admin, "cancel", cancelled)
        assert result.exit_code == 0
        assert f"{cancelled}: Cancellation requested. Status: " in result.output
        await await_status(admin, cancelled, lambda status: status == "completed")
        result = await run_command(admin, "kill", killed, "--json")
        assert result.exit_code == 0
        receipt = InvocationReceipt.model_validate_json(result.output)
        assert (receipt.id, receipt.action, receipt.target) == (killed, "kill", "WaitingRoom/wait")
        assert receipt.saga is None
        await await_status(admin, killed, lambda status: status == "completed")
        assert did.all() == [f"ended {names[0]}"]

        alive = await ingress.send(wait, f"alive-{uuid4()}")
        wrong = await run_command(admin, "cancel", alive[:-1])
        assert f"did you mean '{alive}'?" in str(wrong.exception)
        await admin.control_invocation(alive, "kill")

        late = await run_command(admin, "resume", cancelled)
        assert late.exit_code == 1
        assert isinstance(late.exception, EngineError)
        assert "is completed, cannot be resumed" in str(late.exception)


async def test_name_saga_of_invocation(restate, did):
    orders = ControlPlaneService("CancelledOrders", public=True)

    @orders.main
    async def place(cp: Orchestration, order: str) -> None:
        await cp.step("wait", wait, order)

    env = await restate.serve(waiting_room(did), orders, *hosting.definitions())
    key = str(uuid4())
    async with AdminClient(env.admin) as admin, IngressClient(env.ingress) as ingress:
        await ingress.send(place, key, key=key)

        async def find_step() -> str | None:
            rows = await admin.query(
                "select w.id as id from sys_invocation w join sys_invocation o on w.invoked_by_id = o.id "
                f"where w.target_service_name = 'WaitingRoom' and o.target_service_key = {sql_text(key)}"
            )
            return rows[0]["id"] if rows else None

        step = await eventually(find_step, what="the step's call")
        result = await run_command(admin, "cancel", step)
        assert result.exit_code == 0
        assert f"Saga CancelledOrders/{key}: " in result.output
        with pytest.raises(IngressError, match="step 'wait'"):
            await ingress.attach(place, key=key)


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
