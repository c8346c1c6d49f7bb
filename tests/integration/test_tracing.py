"""Traces of services and engine from the ingress to the last request; replays create no spans."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    RunConfig,
    SagaConfig,
    ServiceClient,
    Step,
    Target,
    race,
    race_awakeable_with_timeout,
    wait_for_external_signal,
)
from perdure.approvals.service import definitions as approvals
from perdure.errors import IngressError, Refused
from perdure.observability.tracing_setup import configure_tracing, stop_tracing
from perdure.saga import hosting
from perdure.testing import Mode
from perdure.testing.served import Restate
from perdure.testing.server import RestateServer
from tests.support import eventually
from tests.system.observability.receiver import ReceivedSpan, TraceReceiver
from tests.system.observability.traces import TraceTree, trace_of

TICK = timedelta(milliseconds=1)
QUICK = RunConfig(max_retries=3, initial_delay=TICK, max_delay=TICK)
PROCESS = "trace-test"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def receiver() -> Iterator[TraceReceiver]:
    with TraceReceiver() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        assert configure_tracing(PROCESS)
        yield receiver
        stop_tracing(timedelta(seconds=5))


@pytest.fixture(scope="module")
def traced(receiver: TraceReceiver, restate_mode: Mode, pytestconfig: pytest.Config) -> Iterator[Restate]:
    """An engine that exports its spans."""
    with RestateServer(
        install_dir=Path(pytestconfig.rootpath) / ".local" / "engine",
        always_suspending=restate_mode is Mode.ALWAYS_SUSPENDING,
        settings={"RESTATE_TRACING_ENDPOINT": receiver.engine_endpoint},
    ) as server:
        yield Restate(server, restate_mode)


class Part(BaseModel):
    name: str
    order: str
    fails: bool = False


build = Target("TracedParts", "build", Part, str)
run_order = Target("TracedOrders", "run", bool, list[str])


def factory(url: str, tried: Counter[str]) -> list[Any]:
    parts = DataPlaneService("TracedParts", run=QUICK)

    @parts.handler("build")
    async def _build(ctx: DataPlaneContext, part: Part) -> str:
        async def do() -> str:
            tried[part.order + part.name] += 1
            if part.fails:
                raise Refused(f"no material for {part.name}")
            if part.name == "a" and tried[part.order + part.name] == 1:
                raise OSError("the press is warming up")
            async with httpx.AsyncClient(trust_env=False) as client:
                await client.get(url)
            return f"{part.name}!"

        return await ctx.run("press", do)

    orders = ControlPlaneService("TracedOrders", saga=SagaConfig(initial_delay=TICK, max_delay=TICK))

    @orders.compensation()
    async def scrap(ctx: sdk.Context, part: Part) -> None:
        return None

    @orders.main()
    async def make(cp: Orchestration, fails: bool) -> list[str]:
        first = Part(name="a", order=cp.key)
        made = [await cp.step("a", build, first, compensate=scrap.bind(first))]
        made += await cp.parallel(
            *(
                Step(name, build, Part(name=name, order=cp.key), compensate=scrap.bind(Part(name=name, order=cp.key)))
                for name in ("b", "c")
            )
        )

        async def label(part: Part) -> str:
            return f"label of {part.name}"

        made.append(await cp.step("label", label, Part(name="d", order=cp.key)))
        signal = wait_for_external_signal(cp.ctx, str)
        assert await race_awakeable_with_timeout(cp.ctx, signal, TICK, "late") == ("late", True)
        calls = [ServiceClient(cp.ctx, build).call_async(Part(name=name, order=cp.key)) for name in ("f", "g")]
        await race(cp.ctx, *calls)
        for call in calls:
            await call
        await ServiceClient(cp.ctx, build).call(Part(name="e", order=cp.key, fails=fails))
        return made

    return [parts, orders, *hosting.definitions()]


async def tree_of(receiver: TraceReceiver, key: str, names: Sequence[str]) -> TraceTree:
    """Wait until the trace of a key has these spans, which are exported with a delay."""

    async def found() -> TraceTree | None:
        tree = trace_of(receiver.spans(), key)
        received = [span.name for span in tree.spans] if tree else []
        return tree if tree and tree.is_connected and not Counter(names) - Counter(received) else None

    return await eventually(found, what=f"a trace with {names}")


def service_spans(tree: TraceTree) -> list[ReceivedSpan]:
    return [span for span in tree.spans if span.service == PROCESS]


def path_names(tree: TraceTree, span: ReceivedSpan) -> list[str]:
    """Return the names from the root to a span."""
    return [each.name for each in tree.path(span)]


async def test_order_is_one_trace_without_duplicates(receiver, traced):
    env = await traced.serve(*factory(f"{receiver.url}/nothing", Counter()))
    key = uuid4().hex
    async with IngressClient(env.ingress) as ingress:
        made = await ingress.call(run_order, False, key=key)
    assert made == ["a!", "b!", "c!", "label of d"]
    tree = await tree_of(
        receiver, key, ["POST", "ingress TracedOrders/{key}/run", "TracedOrders/run", *["TracedParts/build"] * 6]
    )

    names = Counter(span.name for span in service_spans(tree))
    once = ("step a", "step b", "step c", "step label", "run label")
    assert {name: names[name] for name in once} == dict.fromkeys(once, 1)
    assert names["race"] == 2
    assert names["call TracedParts/build"] == 6
    assert names["run press"] == 7  # one failed and was retried
    assert names["GET"] == 6
    assert {span.attributes["perdure.key"] for span in service_spans(tree) if span.name == "TracedOrders/run"} == {key}
    attempts = [span for span in service_spans(tree) if span.name == "TracedOrders/run"]
    assert [int(span.attributes["perdure.attempt"]) for span in attempts] == list(range(1, len(attempts) + 1))
    assert {span.attributes["perdure.saga.id"] for span in attempts} == {f"TracedOrders:{key}"}
    called = [span for span in service_spans(tree) if span.attributes.get("perdure.service") == "TracedParts"]
    of_step = {span.attributes.get("perdure.step"): span.attributes.get("perdure.saga.id") for span in called}
    saga = f"TracedOrders:{key}"
    assert of_step == {"a": saga, "b": saga, "c": saga, None: None}  # None: called outside of a step
    if env.mode is Mode.HTTP2:
        assert len(attempts) == 1
    else:
        assert len(attempts) > 1
        assert attempts[0].attributes["perdure.interrupted"] == "true"

    get = next(span for span in service_spans(tree) if span.name == "GET")
    path = path_names(tree, get)
    assert path[-3:] == ["TracedParts/build", "run press", "GET"]
    assert path[:-3] == [
        "POST",  # the caller's request, whose trace continues through the ingress
        "ingress TracedOrders/{key}/run",
        "invocation-start TracedOrders/{key}/run",
        "invocation-attempt TracedOrders/{key}/run",
        "invocation-start TracedParts/build",
        "invocation-attempt TracedParts/build",
    ]
    failed = [span for span in service_spans(tree) if span.name == "run press" and span.error is not None]
    assert [(span.error, span.attributes["error.type"]) for span in failed] == [("OSError", "OSError")]
    for span in service_spans(tree):
        if span.name == "call TracedParts/build" and not span.attributes.get("perdure.interrupted"):
            assert span.error is None
    parents = {path_names(tree, span)[-2] for span in service_spans(tree) if span.name == "call TracedParts/build"}
    assert parents == {"step a", "step b", "step c", "TracedOrders/run"}
    assert path_names(tree, next(span for span in service_spans(tree) if span.name == "run label"))[-2] == "step label"


async def test_rollback_is_linked_to_saga(receiver, traced):
    env = await traced.serve(*factory(f"{receiver.url}/nothing", Counter()))
    key = uuid4().hex
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError, match="no material for e"):
            await ingress.call(run_order, True, key=key)
    tree = await tree_of(receiver, key, ["ingress TracedOrders/{key}/run", "run submit rollback"])
    saga = f"TracedOrders:{key}"

    async def compensated() -> list[ReceivedSpan] | None:
        found = [span for span in receiver.spans() if span.attributes.get("perdure.saga.id") == saga]
        return found if sum(span.name == "TracedOrdersCompensations/scrap" for span in found) >= 3 else None

    spans = await eventually(compensated, what="spans of three compensations")
    (submission,) = [span for span in service_spans(tree) if span.name == "run submit rollback"]
    passes = [span for span in spans if span.name == "ExecutionRollbacks/run"]
    first = min(passes, key=lambda span: span.start)
    assert first.links[-1] == (submission.trace_id, submission.span_id)
    for span in passes:
        if span.attributes.get("perdure.interrupted"):  # possibly before it read its state
            continue
        assert (submission.trace_id, submission.span_id) in span.links
        assert span.trace_id != submission.trace_id
    compensations = Counter(span.attributes["perdure.step"] for span in spans if "scrap" in span.name)
    assert compensations == {"a": 1, "b": 1, "c": 1}
    if env.mode is Mode.HTTP2:  # otherwise the call is suspended, without an end
        (failed,) = [span for span in service_spans(tree) if span.name == "call TracedParts/build" and span.error]
        assert (failed.error, failed.attributes["perdure.status_code"]) == ("no material for e", "409")


async def test_approval_and_failed_attempt_have_spans(receiver, traced):
    service = ControlPlaneService("TracedPermits")
    failures: Counter[str] = Counter()

    @service.main()
    async def ask(cp: Orchestration) -> bool:
        failures[cp.key] += 1
        if failures[cp.key] == 1:
            raise OSError("a secret that no trace shows")
        return await cp.await_human_approval(f"permit-{cp.key}", timedelta(seconds=30), approvers=["ada"])

    env = await traced.serve(service, *approvals())
    key = uuid4().hex
    async with IngressClient(env.ingress) as ingress:
        answer = asyncio.ensure_future(ingress.call(Target("TracedPermits", "run", None, bool), key=key))
        decide = Target("Approvals", "approve", dict[str, str], Any)

        async def decided() -> bool:
            try:
                await ingress.call(decide, {"actor": "ada", "reason": "fine"}, key=f"permit-{key}")
            except IngressError as error:
                if error.status_code != 404:
                    raise
                return False
            return True

        await eventually(decided, what="an open approval")
        assert await answer is True
    tree = await tree_of(receiver, key, ["approval", "ingress TracedPermits/{key}/run"])
    (wait,) = [span for span in service_spans(tree) if span.name == "approval"]
    assert wait.attributes["perdure.approval"] == f"permit-{key}"
    assert wait.error is None
    first = next(span for span in service_spans(tree) if span.attributes.get("perdure.attempt") == "1")
    assert (first.error, first.attributes["error.type"]) == ("OSError", "OSError")
    assert "secret" not in repr(tree.spans)
