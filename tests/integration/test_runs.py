"""Runs: retries, backoff and journaling."""

from __future__ import annotations

import itertools
import time
from datetime import timedelta
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from restate.exceptions import RetryableError

from perdure import IngressClient, RunConfig, run_with_retry
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import Refused, TerminalError, error_code
from tests.integration.run_cases import QUICK, failing, failure_of, go, result_of, serving
from tests.support import eventually


async def test_retry_run_until_success(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        first = await run_with_retry(ctx, QUICK, failing(did, 2, OSError("gone")))
        await ctx.sleep(timedelta(milliseconds=1))  # a replay in two of the modes
        return first

    assert await result_of(restate, work) == "done"
    assert did.count("attempt") == 3


async def test_terminal_error_stops_run(restate, did):
    refusal = Refused("no seats left", 410, "seats_sold_out", {"flight": "PD100"})
    caught: list[TerminalError] = []

    async def work(ctx: sdk.Context, key: str) -> str:
        try:
            return await run_with_retry(ctx, QUICK, failing(did, 99, refusal))
        except TerminalError as error:
            caught.append(error)
            raise

    error = await failure_of(restate, work)
    assert did.count("attempt") == 1
    assert (error.status_code, error.message) == (410, "no seats left")
    assert error.metadata == {"code": "seats_sold_out", "flight": "PD100"}
    # The handler sees the same error after a replay.
    assert {(seen.message, seen.status_code, error_code(seen)) for seen in caught} == {
        ("no seats left", 410, "seats_sold_out")
    }


@pytest.mark.parametrize(
    "failure",
    [OSError("gone"), RetryableError("gone"), RetryableError("gone", 503, timedelta(milliseconds=5))],
    ids=["exception", "retryable", "retryable after"],
)
async def test_exhausted_run_names_attempts_and_cause(restate, did, failure):
    async def work(ctx: sdk.Context, key: str) -> str:
        settings = RunConfig("charge", max_retries=2, initial_delay=timedelta(milliseconds=5))
        return await run_with_retry(ctx, settings, failing(did, 99, failure))

    error = await failure_of(restate, work)
    assert did.count("attempt") == 3
    assert error.message == f"run exhausted retries (3 attempts) for charge: {failure!r}"
    assert error.status_code == 500
    assert error.metadata == {"code": "run_exhausted", "run": "charge"}


async def test_retryable_error_sets_delay(restate, did):
    times: list[float] = []
    wait = timedelta(milliseconds=300)

    def action() -> str:
        times.append(time.monotonic())
        if len(times) < 2:
            raise RetryableError("busy", retry_after=wait)
        return "done"

    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, QUICK, action)

    assert await result_of(restate, work) == "done"
    assert times[1] - times[0] >= wait.total_seconds() * 0.9


async def test_ingress_body_has_no_stack_trace(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, RunConfig("charge", max_retries=0), failing(did, 99, OSError("gone")))

    env = await restate.serve(serving(work))
    async with httpx.AsyncClient() as http:
        response = await http.post(f"{env.ingress}/Runs/go", json="x")
    assert response.json()["message"] == "run exhausted retries (1 attempts) for charge: OSError('gone')"
    assert "Traceback" not in response.text


async def waits(restate, config: RunConfig, failures: int) -> list[float]:
    """Return the seconds between the attempts of a run that fails the given number of times."""
    times: list[float] = []

    def action() -> str:
        times.append(time.monotonic())
        if len(times) <= failures:
            raise OSError("gone")
        return "done"

    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, config, action)

    assert await result_of(restate, work) == "done"
    return [later - earlier for earlier, later in itertools.pairwise(times)]


async def test_initial_delay_and_backoff_factor(restate):
    config = RunConfig("work", initial_delay=timedelta(milliseconds=100), backoff_factor=3)
    first, second = await waits(restate, config, failures=2)
    assert first >= 0.09
    assert second >= 0.27


async def test_max_delay_caps_the_wait(restate):
    config = RunConfig(
        "work", initial_delay=timedelta(milliseconds=20), max_delay=timedelta(milliseconds=40), backoff_factor=100
    )
    assert max(await waits(restate, config, failures=3)) < 1.5  # without max_delay: 2 s and 200 s


async def test_max_duration_limits_run(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        config = RunConfig(
            "work",
            max_retries=None,
            initial_delay=timedelta(milliseconds=50),
            max_delay=timedelta(milliseconds=50),
            max_duration=timedelta(milliseconds=400),
        )
        return await run_with_retry(ctx, config, failing(did, 1_000, OSError("gone")))

    error = await failure_of(restate, work)
    assert error.message == "run exhausted retries (0.4 s) for work: OSError('gone')"
    assert 2 <= did.count("attempt") <= 9


async def test_journal_contains_run_name(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        return await run_with_retry(ctx, "charge the card", failing(did, 0, OSError()))

    env = await restate.serve(serving(work))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        invocation_id = await ingress.send(go, str(uuid4()))

        async def journaled() -> bool:
            rows = await admin.query(f"select name from sys_journal where id = {sql_text(invocation_id)}")
            return "charge the card" in [row.get("name") for row in rows]

        await eventually(journaled, what="run of that name in the journal")


async def test_reject_run_without_name(restate, did):
    async def work(ctx: sdk.Context, key: str) -> str:
        try:
            await run_with_retry(ctx, RunConfig(), failing(did, 0, OSError()))
        except Exception as error:
            raise TerminalError(str(error)) from error
        return "not reached"

    error = await failure_of(restate, work)
    assert error.message == "a run needs a name: RunConfig(name) or RunConfig(...).named(name)"
    assert did.all() == []
