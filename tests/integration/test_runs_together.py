"""Concurrent runs: own attempts and waits, no interruption by failures of others."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk

from perdure import IngressClient, RunConfig, Target, fan_out, handler, map_concurrent, run_async, run_with_retry
from perdure._runtime import concurrent_runs
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError, error_code
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("all")

go = Target("Together", "go", str, str)


def ms(count: float) -> timedelta:
    return timedelta(milliseconds=count)


QUICK = ms(5)


def bounded(name: str, retries: int | None, delay: timedelta = QUICK, **settings) -> RunConfig:
    return RunConfig(name, max_retries=retries, initial_delay=delay, max_delay=delay, **settings)


async def played(restate, work) -> str:
    service = sdk.Service("Together")

    async def named(ctx: sdk.Context, key: str) -> str:
        return await work(ctx)

    handler(service, name="go")(named)
    env = await restate.serve(service)
    async with IngressClient(env.ingress) as ingress:
        return await ingress.call(go, str(uuid4()))


class Shop:
    """Named actions that fail given numbers of times and count their starts."""

    def __init__(self) -> None:
        self.began: Counter[str] = Counter()
        self._lock = threading.Lock()

    def failing(self, name: str, times: int) -> Callable[[], str]:
        def action() -> str:
            with self._lock:
                self.began[name] += 1
                number = self.began[name]
            if number <= times:
                raise OSError(f"{name} is closed")
            return name

        return action


async def test_concurrent_runs_count_own_attempts(restate):
    shop = Shop()
    counts = {"never": (2, 99), "late": (4, 4), "soon": (0, 0), "once": (1, 1), "not at all": (0, 99)}

    async def work(ctx: sdk.Context) -> str:
        runs = [
            run_async(ctx, bounded(name, retries), shop.failing(name, times))
            for name, (retries, times) in counts.items()
        ]
        ended = await fan_out(ctx, runs)
        return f"{ended.results} {[(index, error_code(error)) for index, error in ended.errors.items()]}"

    said = await played(restate, work)
    assert said == "(None, 'late', 'soon', 'once', None) [(0, 'run_exhausted'), (4, 'run_exhausted')]"
    assert shop.began == {"never": 3, "late": 5, "soon": 1, "once": 2, "not at all": 1}


async def test_run_starts_when_awaited(restate, did):
    async def work(ctx: sdk.Context) -> str:
        first, second = (run_async(ctx, name, did.add, f"begin {name}") for name in ("first", "second"))
        await first
        did.add("first is there")
        await second
        return "done"

    assert await played(restate, work) == "done"
    said = did.all()
    assert said.index("first is there") < said.index("begin second"), "see run_async"


async def test_failure_does_not_interrupt_other_run(restate):
    shop = Shop()

    def slowly() -> str:
        shop.began["slow"] += 1
        time.sleep(0.3)
        return "slow"

    async def work(ctx: sdk.Context) -> str:
        slow = run_async(ctx, bounded("slow", 0), slowly)
        quick = run_async(ctx, bounded("quick", 3), shop.failing("quick", 2))
        return str((await fan_out(ctx, [quick, slow])).results)

    assert await played(restate, work) == "('quick', 'slow')"
    assert shop.began == {"slow": 1, "quick": 3}


async def test_concurrent_runs_have_own_waits(restate):
    times: dict[str, list[float]] = {"patient": [], "eager": []}

    def failing(name: str, often: int) -> Callable[[], str]:
        def action() -> str:
            times[name].append(time.monotonic())
            if len(times[name]) <= often:
                raise OSError(f"{name} is closed")
            return name

        return action

    async def work(ctx: sdk.Context) -> str:
        patient = run_async(ctx, bounded("patient", 1, ms(1_500)), failing("patient", 1))
        eager = run_async(ctx, bounded("eager", 4, ms(10)), failing("eager", 4))
        return str((await fan_out(ctx, [patient, eager])).results)

    assert await played(restate, work) == "('patient', 'eager')"
    assert times["patient"][1] - times["patient"][0] >= 1.4
    assert times["eager"][-1] - times["eager"][0] < 1.4, "it waited for the other's wait"


# If each wait ends the attempt, the handler gets the eager run's result after the patient run's next attempt.
@pytest.mark.restate_modes("http2")
async def test_cancel_skips_wait_for_retry(restate, did):
    shop = Shop()
    fails = {"patient": (ms(60_000), 99), "eager": (ms(10), 3)}

    async def work(ctx: sdk.Context) -> str:
        async def branch(name: str, _: int) -> str:
            delay, times = fails[name]
            done = await run_with_retry(ctx, bounded(name, None, delay), shop.failing(name, times))
            did.add(f"{name} is done")
            return done

        return str(await map_concurrent(ctx, list(fails), branch))

    service = sdk.Service("Together")

    async def named(ctx: sdk.Context, key: str) -> str:
        return await work(ctx)

    handler(service, name="go")(named)
    env = await restate.serve(service)
    async with IngressClient(env.ingress, admin_url=env.admin) as ingress:
        invocation_id = await ingress.send(go, str(uuid4()))

        async def only_the_patient_one_is_left() -> bool:
            return did.count("eager is done") > 0

        await eventually(only_the_patient_one_is_left, what="end of the eager run")
        await ingress.cancel(invocation_id)
        with pytest.raises(IngressError, match="cancelled during"):
            await ingress.attach(go, invocation_id=invocation_id, timeout=timedelta(seconds=20))
    assert shop.began["patient"] == 1


async def test_unlimited_run_keeps_limits_of_others(restate):
    shop = Shop()

    async def work(ctx: sdk.Context) -> str:
        runs = [
            run_async(ctx, bounded("endless", None), shop.failing("endless", 8)),
            run_async(ctx, bounded("bounded", 2), shop.failing("bounded", 99)),
            run_async(ctx, bounded("timed", None, ms(20), max_duration=ms(60)), shop.failing("timed", 99)),
        ]
        return str([error.message for error in (await fan_out(ctx, runs)).errors.values()])

    assert await played(restate, work) == str(
        [
            "run exhausted retries (3 attempts) for bounded: OSError('bounded is closed')",
            "run exhausted retries (0.06 s) for timed: OSError('timed is closed')",
        ]
    )
    assert shop.began["endless"] == 9
    assert shop.began["bounded"] == 3
    assert 1 <= shop.began["timed"] <= 5  # on a busy machine, the first attempt may use up the time


async def test_concurrent_branches_count_own_attempts(restate):
    shop = Shop()
    fails = [2, 0, 1, 0, 2]

    async def work(ctx: sdk.Context) -> str:
        async def branch(times: int, index: int) -> str:
            first = await run_with_retry(ctx, bounded(f"first {index}", 2), shop.failing(f"first {index}", times))
            await run_with_retry(ctx, bounded(f"second {index}", 0), shop.failing(f"second {index}", 0))
            return first

        return str(await map_concurrent(ctx, fails, branch, limit=3))

    assert await played(restate, work) == str([f"first {index}" for index in range(5)])
    assert shop.began == {f"first {i}": times + 1 for i, times in enumerate(fails)} | {
        f"second {i}": 1 for i in range(5)
    }


async def test_engine_counts_run_after_group(restate):
    shop = Shop()

    async def work(ctx: sdk.Context) -> str:
        runs = [run_async(ctx, bounded(name, 3), shop.failing(name, 1)) for name in ("a", "b")]
        await fan_out(ctx, runs)
        last = run_async(ctx, bounded("last", 1), shop.failing("last", 1))
        return f"{await last} {last._member.is_concurrent}"

    assert await played(restate, work) == "last False"
    assert shop.began == {"a": 2, "b": 2, "last": 2}


async def test_runs_end_despite_lost_counts(restate, monkeypatch):
    shop = Shop()
    monkeypatch.setattr(concurrent_runs, "_store", concurrent_runs._AttemptStore(size=0))  # loses all counts

    async def work(ctx: sdk.Context) -> str:
        runs = [run_async(ctx, bounded(name, 2), shop.failing(name, 99)) for name in ("a", "b")]
        return str([error_code(error) for error in (await fan_out(ctx, runs)).errors.values()])

    assert await played(restate, work) == "['run_exhausted', 'run_exhausted']"
    assert max(shop.began.values()) <= 6 + concurrent_runs.LOST_ATTEMPTS, "the sum of both limits, and the allowance"


@pytest.mark.restate_modes("http2")
async def test_reused_key_resets_attempts(restate):
    shop = Shop()
    flow = sdk.Workflow("TogetherAgain")
    again = Target("TogetherAgain", "run", bool, str)

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext, closed: bool) -> str:
        if closed:
            return await run_with_retry(ctx, bounded("closed", 2), shop.failing("closed", 99))
        runs = [run_async(ctx, bounded(name, 2), shop.failing(name, 1)) for name in ("a", "b")]
        return "".join([await each for each in runs])

    env = await restate.serve(flow)
    key = str(uuid4())
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        with pytest.raises(IngressError, match="run exhausted"):
            await ingress.call(again, True, key=key)
        (row,) = await admin.query(f"select id from sys_invocation_status where target_service_key = {sql_text(key)}")
        await admin.control_invocation(row["id"], "purge")  # as at the end of its retention; the ID stays the same
        assert await ingress.call(again, False, key=key) == "ab"
    assert shop.began == {"closed": 3, "a": 2, "b": 2}
