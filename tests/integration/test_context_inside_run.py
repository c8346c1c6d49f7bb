"""Use of the context inside a run: refused at its first use, not at a replay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    DeterministicHelpers,
    IngressClient,
    MutableState,
    ObjectClient,
    RunConfig,
    ServiceClient,
    State,
    StatusData,
    Target,
    Time,
    WorkflowClient,
    WorkflowStatus,
    clear_all,
    get_internal_signal,
    handler,
    race_awakeable_with_timeout,
    race_promise_with_timeout,
    reject_external_signal,
    resolve_external_signal,
    run_async,
    run_with_retry,
    update_status,
    wait_for_external_signal,
)
from perdure.errors import IngressError
from tests.support import Recording

SECOND = timedelta(seconds=1)

other = Target("Insides", "nothing", None, None)


def action() -> int:
    return 1


# Objects that a handler creates before its run and may use inside it.
Made = dict[str, Any]
Act = Callable[[sdk.WorkflowContext, Made], Awaitable[object]]


def made_before(ctx: sdk.WorkflowContext) -> Made:
    return {
        "signal": wait_for_external_signal(ctx, int),
        "promise": get_internal_signal(ctx, "promise", int),
        "call": ServiceClient(ctx, other).call_async(),
        "state": State(ctx, "n", int),
        "time": Time(ctx),
        "helpers": DeterministicHelpers(ctx),
        "client": ServiceClient(ctx, other),
        "workflow": WorkflowClient(ctx, other, "k"),
        "run": run_async(ctx, "started before", action),
        "sdk": cast("sdk.ObjectContext", ctx),
        "sdk future": ctx.sleep(SECOND),
        "sdk call": ctx.generic_call("Insides", "nothing", b""),
    }


async def awaited(value: Awaitable[object]) -> object:
    return await value


def plain(function: Callable[[sdk.WorkflowContext, Made], object]) -> Act:
    async def act(ctx: sdk.WorkflowContext, made: Made) -> object:
        return function(ctx, made)

    return act


ACTS: dict[str, Act] = {
    "ServiceClient.call": lambda ctx, made: made["client"].call(),
    "ServiceClient.call_async": plain(lambda ctx, made: made["client"].call_async()),
    "ServiceClient.send": lambda ctx, made: made["client"].send(),
    "ServiceClient made inside": lambda ctx, made: ServiceClient(ctx, other).call(),
    "ObjectClient.call": lambda ctx, made: ObjectClient(ctx, other, "k").call(),
    "WorkflowClient.submit": lambda ctx, made: made["workflow"].submit(),
    "WorkflowClient.attach": lambda ctx, made: made["workflow"].attach("inv_1"),
    "CallFuture awaited": lambda ctx, made: awaited(made["call"]),
    "CallFuture.invocation_id": lambda ctx, made: made["call"].invocation_id(),
    "State.get": lambda ctx, made: made["state"].get(),
    "State.set": lambda ctx, made: made["state"].set(1),
    "State.clear": lambda ctx, made: made["state"].clear(),
    "MutableState": plain(lambda ctx, made: MutableState(cast("sdk.ObjectContext", ctx), "n", int)),
    "clear_all": lambda ctx, made: clear_all(cast("sdk.ObjectContext", ctx)),
    "Time.now": lambda ctx, made: made["time"].now(),
    "DeterministicHelpers.uuid": plain(lambda ctx, made: made["helpers"].uuid()),
    "DeterministicHelpers.rand_int": plain(lambda ctx, made: made["helpers"].rand_int(0, 9)),
    "DeterministicHelpers.rand_float": plain(lambda ctx, made: made["helpers"].rand_float()),
    "DeterministicHelpers.rand_choice": plain(lambda ctx, made: made["helpers"].rand_choice("ab")),
    "run_with_retry": lambda ctx, made: run_with_retry(ctx, "inner", action),
    "run_async": plain(lambda ctx, made: run_async(ctx, "inner", action)),
    "RunFuture awaited": lambda ctx, made: awaited(made["run"]),
    "wait_for_external_signal": plain(lambda ctx, made: wait_for_external_signal(ctx, int)),
    "ExternalSignal.result": lambda ctx, made: made["signal"].result(),
    "resolve_external_signal": plain(lambda ctx, made: resolve_external_signal(ctx, made["signal"].id, 1)),
    "reject_external_signal": plain(lambda ctx, made: reject_external_signal(ctx, made["signal"].id, "no")),
    "get_internal_signal": plain(lambda ctx, made: get_internal_signal(ctx, "other", int)),
    "InternalSignal.result": lambda ctx, made: made["promise"].result(),
    "InternalSignal.peek": lambda ctx, made: made["promise"].peek(),
    "InternalSignal.resolve": lambda ctx, made: made["promise"].resolve(1),
    "InternalSignal.reject": lambda ctx, made: made["promise"].reject("no"),
    "InternalSignal.future": plain(lambda ctx, made: made["promise"].future),
    "race_awakeable_with_timeout": lambda ctx, made: race_awakeable_with_timeout(ctx, made["signal"], SECOND, 0),
    "race_promise_with_timeout": lambda ctx, made: race_promise_with_timeout(ctx, "promise", SECOND, int),
    "update_status": lambda ctx, made: update_status(ctx, StatusData(phase="x")),
    "WorkflowStatus": lambda ctx, made: WorkflowStatus(ctx).get_status(),
    # The SDK's context, which user code has, too.
    "ctx.run": plain(lambda ctx, made: made["sdk"].run("inner", action)),
    "ctx.run_typed": plain(lambda ctx, made: made["sdk"].run_typed("inner", action)),
    "ctx.sleep": plain(lambda ctx, made: made["sdk"].sleep(SECOND)),
    "ctx.get": plain(lambda ctx, made: made["sdk"].get("n")),
    "ctx.set": plain(lambda ctx, made: made["sdk"].set("n", 1)),
    "ctx.clear": plain(lambda ctx, made: made["sdk"].clear("n")),
    "ctx.clear_all": plain(lambda ctx, made: made["sdk"].clear_all()),
    "ctx.state_keys": plain(lambda ctx, made: made["sdk"].state_keys()),
    "ctx.generic_call": plain(lambda ctx, made: made["sdk"].generic_call("Insides", "nothing", b"")),
    "ctx.generic_send": plain(lambda ctx, made: made["sdk"].generic_send("Insides", "nothing", b"")),
    "ctx.awakeable": plain(lambda ctx, made: made["sdk"].awakeable()),
    "ctx.resolve_awakeable": plain(lambda ctx, made: made["sdk"].resolve_awakeable(made["signal"].id, 1)),
    "ctx.reject_awakeable": plain(lambda ctx, made: made["sdk"].reject_awakeable(made["signal"].id, "no")),
    "ctx.promise": plain(lambda ctx, made: made["sdk"].promise("promise").value()),
    "ctx.promise resolved": plain(lambda ctx, made: made["sdk"].promise("promise").resolve(1)),
    "ctx.attach_invocation": plain(lambda ctx, made: made["sdk"].attach_invocation("inv_1")),
    "ctx.cancel_invocation": plain(lambda ctx, made: made["sdk"].cancel_invocation("inv_1")),
    "ctx.signal": plain(lambda ctx, made: made["sdk"].signal("signal")),
    "ctx.uuid": plain(lambda ctx, made: made["sdk"].uuid()),
    "ctx.random": plain(lambda ctx, made: made["sdk"].random()),
    "ctx.time": plain(lambda ctx, made: made["sdk"].time()),
    "a future of the SDK's awaited": lambda ctx, made: awaited(made["sdk future"]),
    "a call of the SDK's awaited": lambda ctx, made: awaited(made["sdk call"]),
    "restate.select": lambda ctx, made: sdk.select(one=made["sdk future"]),
    "restate.gather": lambda ctx, made: sdk.gather(made["sdk future"], made["sdk call"]),
}


def services(did: Recording) -> list[Any]:
    insides = sdk.Service("Insides")
    inside = sdk.Workflow("Inside")

    @handler(insides)
    async def nothing(ctx: sdk.Context) -> None: ...

    @handler(inside, "main")
    async def run(ctx: sdk.WorkflowContext, act: str) -> str:
        made = made_before(ctx)
        name, _, by = act.partition("|")

        async def action_with_context() -> None:
            did.add(act)
            await ACTS[name](ctx, made)

        def thread_with_context() -> None:
            did.add(act)
            ctx.sleep(SECOND)

        match by:
            case "perdure":
                await run_with_retry(ctx, RunConfig("outer", max_retries=3), action_with_context)
            case "sdk":
                await ctx.run_typed("outer", action_with_context)
            case "sdk, untyped":
                await ctx.run("outer", action_with_context)
            case "thread":
                await run_with_retry(ctx, RunConfig("outer", max_retries=3), thread_with_context)
            case "thread of the sdk":
                await ctx.run("outer", thread_with_context)
        return "it worked, until the first replay"

    return [insides, inside]


run_act = Target("Inside", "run", str, str)


async def test_refuse_context_inside_run(restate, did):
    env = await restate.serve(*services(did))
    async with IngressClient(env.ingress) as ingress:
        acts = [
            *(f"{name}|perdure" for name in ACTS),
            *(f"{name}|sdk" for name in ("State.get", "ctx.get", "ctx.sleep", "restate.select", "ctx.random")),
            "ctx.set|sdk, untyped",
            "|thread",
            "|thread of the sdk",
        ]
        for act in acts:
            try:
                answer = await ingress.call(run_act, act, key=str(uuid4()))
            except IngressError as refused:
                error = refused
            else:
                pytest.fail(f"{act}: {answer}")
            assert "inside the run 'outer'. A run must not use the context" in error.message, act
            assert error.metadata["code"] == "context_inside_run", act
            assert error.metadata["run"] == "outer", act
            assert did.count(act) == 1, f"{act} was tried again"


async def test_run_can_read_request(restate):
    inside = sdk.VirtualObject("Asking")

    @handler(inside, "exclusive")
    async def ask(ctx: sdk.ObjectContext) -> str:
        facts = await run_with_retry(ctx, "ask", lambda: f"{ctx.key()} {ctx.request().id[:4]}")
        return f"{facts} {await ctx.run_typed('ask the sdk', ctx.key)}"

    env = await restate.serve(inside)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(ask, key="k") == "k inv_ k"


@pytest.mark.restate_modes("http2")
async def test_other_code_uses_context_during_run(restate, did):
    insides, _ = services(did)
    service = sdk.Service("Outside")

    @handler(service)
    async def go(ctx: sdk.Context) -> str:
        running = run_async(ctx, "outer", action)
        call = ServiceClient(ctx, other).call_async()
        await sdk.gather(running.future, call.future)
        return f"{await running} {await call}"

    env = await restate.serve(insides, service)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(go) == "1 None"
