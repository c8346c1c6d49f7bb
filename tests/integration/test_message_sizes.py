"""Values over the engine's limits: refused for good, wherever they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

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
    State,
    get_internal_signal,
    handler,
    resolve_external_signal,
    run_with_retry,
    wait_for_external_signal,
)
from perdure._runtime.message_sizes import engine_limits
from perdure.errors import IngressError, Refused
from perdure.saga import hosting
from perdure.schedules import ScheduleClient
from perdure.security.codec import new_encryption_key
from perdure.security.config import SecurityConfig
from perdure.testing import Mode, Restate, RestateServer
from perdure.testing.plugin import restate_fixture
from tests.support import Recording

KIB = 1024
LARGE = "x" * 300 * KIB
ONCE = RunConfig("work", max_retries=0)

did = Recording()

plain = sdk.Service("Sizes")
things = sdk.VirtualObject("SizedThings")
flows = sdk.Workflow("SizedFlows")


@handler(plain)
async def length(ctx: sdk.Context, text: str) -> int:
    return len(text)


@handler(plain)
async def run(ctx: sdk.Context, key: str) -> int:
    def read() -> str:
        did.add(f"run {key}")
        return LARGE

    return len(await run_with_retry(ctx, "read", read))


@handler(plain)
async def answer(ctx: sdk.Context, key: str) -> str:
    return LARGE


@handler(plain)
async def call(ctx: sdk.Context, key: str) -> int:
    return await ServiceClient(ctx, length).call(LARGE)


@handler(plain)
async def send(ctx: sdk.Context, key: str) -> None:
    await ServiceClient(ctx, length).send(LARGE, delay=timedelta(hours=1))


@handler(plain)
async def headers(ctx: sdk.Context, key: str) -> int:
    return await ServiceClient(ctx, length).call("", headers={"x-large": LARGE})


@handler(plain)
async def awakeable(ctx: sdk.Context, key: str) -> None:
    signal = wait_for_external_signal(ctx, str)
    await resolve_external_signal(ctx, signal.id, LARGE)


@handler(plain)
async def schedule(ctx: sdk.Context, key: str) -> None:
    await ScheduleClient(ctx).set(key, target=length, request=LARGE, every=timedelta(days=1))


@handler(plain)
async def error(ctx: sdk.Context, key: str) -> None:
    raise Refused(LARGE, 413, "too_large", {"text": LARGE})


@handler(plain)
async def run_error(ctx: sdk.Context, key: str) -> None:
    def fail() -> None:
        raise Refused(LARGE, 413, "too_large")

    await run_with_retry(ctx, "fail", fail)


@handler(things, "exclusive")
async def state(ctx: sdk.ObjectContext, key: str) -> None:
    await State(ctx, "text", str).set(LARGE)


@handler(flows, "main", name="run")
async def promise(ctx: sdk.WorkflowContext, key: str) -> None:
    await get_internal_signal(ctx, "text", str).resolve(LARGE)


@handler(plain)
async def exhausted(ctx: sdk.Context, key: str) -> None:
    """Fail for another reason: an exception with a large text."""

    def fail() -> None:
        raise ValueError(LARGE)

    await run_with_retry(ctx, ONCE, fail)


PLACES = [run, answer, call, send, headers, awakeable, schedule, error, run_error, state, promise]


class Part(BaseModel):
    saga: str
    request: str = ""
    size: int = 0


parts = DataPlaneService("SizedParts")
orders = ControlPlaneService("SizedOrders", saga=SagaConfig(initial_delay=timedelta(milliseconds=20)))


@parts.handler()
async def make(ctx: DataPlaneContext, part: Part) -> str:
    did.add(f"make {part.saga}")
    return "r" * part.size


@orders.compensation()
async def scrap(ctx: sdk.Context, part: Part) -> None:
    did.add(f"scrap {part.saga}")


class Order(BaseModel):
    """Sizes in KiB of a step's compensation payload, request and result, number of such steps, size of the answer."""

    record: int = 0
    request: int = 0
    result: int = 0
    steps: int = 1
    is_local: bool = False
    answer: int = 0


@orders.main(steps=1)
async def order(cp: Orchestration, wanted: Order) -> int | str:
    async def make_here(part: Part) -> str:
        did.add(f"make {part.saga}")
        return "r" * part.size

    await cp.step("first", make, Part(saga=cp.key), compensate=scrap.bind(Part(saga=cp.key)))
    for number in range(wanted.steps):
        payload = Part(saga=cp.key, request="p" * wanted.record * KIB)
        part = Part(saga=cp.key, request="q" * wanted.request * KIB, size=wanted.result * KIB)
        await cp.step(f"s{number}", make_here if wanted.is_local else make, part, compensate=scrap.bind(payload))
    return "a" * wanted.answer * KIB or wanted.steps


SMALL = {
    "PERDURE_ENGINE_MESSAGE_LIMIT": "320KiB",
    "PERDURE_ENGINE_INVOCATION_LIMIT": "768KiB",
    "PERDURE_STEP_RESULT_LIMIT": "128KiB",
}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    engine_limits.cache_clear()
    yield
    monkeypatch.undo()
    engine_limits.cache_clear()


sized = restate_fixture(plain, things, flows, parts, orders, *hosting.definitions())


async def test_oversized_values_are_refused_everywhere(sized):
    async def fail(place: Any, ingress: IngressClient) -> IngressError:
        key = str(uuid4())
        with pytest.raises(IngressError) as failed:
            await ingress.call(place, key, key=key if place in (state, promise) else None)
        if place is run:
            assert did.count(f"run {key}") == 1
        return failed.value

    async with IngressClient(sized.ingress, timeout=timedelta(seconds=60)) as ingress:
        errors = await asyncio.gather(*(fail(place, ingress) for place in PLACES))
        exhaustion = await fail(exhausted, ingress)
    found = {place.__name__: (error.status_code, error.code) for place, error in zip(PLACES, errors, strict=True)}
    assert found == dict.fromkeys(found, (413, "too_large"))
    assert max(len(str(error)) for error in (*errors, exhaustion)) < 20_000
    assert exhaustion.code == "run_exhausted"


async def test_oversized_encrypted_answer_rolls_saga_back(restate, tmp_path):
    new_encryption_key(tmp_path / "journal.keys")
    security = SecurityConfig.development(encryption_keys_file=tmp_path / "journal.keys")
    answers = ControlPlaneService("EncryptedAnswers")

    @answers.compensation
    async def release(ctx: sdk.Context, key: str) -> None:
        did.add(f"released {key}")

    @answers.main
    async def answer(cp: Orchestration, size: int) -> str:
        cp.add_compensation_step("release", cp.key)
        return "x" * (size - 2)  # and two quotes

    env = await restate.serve(answers, *hosting.definitions(), security=security)
    limit = engine_limits().value
    async with IngressClient(env.ingress, codec=security.codec()) as ingress:
        for size in (limit, limit - 1):
            key = str(uuid4())
            with pytest.raises(IngressError) as failed:
                await ingress.call(answer, size, key=key)
            assert (failed.value.status_code, failed.value.code) == (413, "too_large")
            assert (failed.value.metadata["rollback"], did.count(f"released {key}")) == ("rolled_back", 1)
        assert len(await ingress.call(answer, limit - 1000, key=str(uuid4()))) == limit - 1002


FITS = Order(record=10, request=10, result=100, steps=2)
EXCEEDS = {
    "request": Order(request=300),
    "record": Order(record=300),
    "records": Order(record=90, steps=6),
    "result": Order(result=129),
    "local result": Order(result=129, is_local=True),
    "journal": Order(request=10, result=120, steps=8),
    "local journal": Order(result=120, steps=8, is_local=True),
    "answer": Order(answer=300),
}


async def test_saga_over_a_limit_is_rolled_back(sized):
    async def play(wanted: Order, ingress: IngressClient) -> tuple[str, IngressError | int | str]:
        key = str(uuid4())
        try:
            return key, await ingress.call(order, wanted, key=key)
        except IngressError as error:
            return key, error

    async with IngressClient(sized.ingress, timeout=timedelta(seconds=90)) as ingress:
        (_, fits), *exceeding = await asyncio.gather(*(play(each, ingress) for each in (FITS, *EXCEEDS.values())))
    assert fits == 2
    for name, (key, error) in zip(EXCEEDS, exceeding, strict=True):
        assert isinstance(error, IngressError), name
        assert (name, error.status_code, error.code) == (name, 413, "too_large"), error
        assert error.metadata["rollback"] == "rolled_back", name
        assert did.count(f"scrap {key}") >= did.count(f"make {key}") >= 1, name


store = sdk.VirtualObject("SizedStore")


@handler(store, "exclusive")
async def put(ctx: sdk.ObjectContext, name: str) -> int:
    await State(ctx, name, str).set("x" * 300 * KIB)
    return len(await ctx.state_keys())


@handler(store, "exclusive")
async def size_of(ctx: sdk.ObjectContext, name: str) -> int:
    return len(await State(ctx, name, str, default="").get())


@pytest.mark.parametrize("mode", [Mode.HTTP2, Mode.REQUEST_RESPONSE])
async def test_state_may_exceed_memory_of_invocation(restate_servers, monkeypatch, mode):
    """Pins the engine's behaviour with the eager limit of our engines below its memory limit."""
    monkeypatch.setenv("PERDURE_ENGINE_MESSAGE_LIMIT", "32MiB")
    engine_limits.cache_clear()
    engine = {
        "RESTATE_WORKER__INVOKER__PER_INVOCATION_MEMORY_LIMIT": "768KiB",
        "RESTATE_WORKER__INVOKER__EAGER_STATE_SIZE_LIMIT": "192KiB",
    }
    with RestateServer(install_dir=restate_servers.install_dir, settings=engine) as server:
        restate = Restate(server, mode)
        try:
            env = await restate.serve(store)
            async with IngressClient(env.ingress, timeout=timedelta(seconds=30)) as ingress:
                for number in range(1, 6):
                    assert await ingress.call(put, f"n{number}", key="k") == number
                assert await ingress.call(size_of, "n3", key="k") == 300 * KIB
        finally:
            await restate.close()
