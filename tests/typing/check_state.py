"""Types of state, signals, races and runs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

import restate
from pydantic import BaseModel

from perdure import (
    DeterministicHelpers,
    MutableState,
    ObservabilityHooks,
    PromiseRaceResult,
    ReadOnlyState,
    RunConfig,
    State,
    Time,
    clear_all,
    get_internal_signal,
    race_awakeable_with_timeout,
    race_promise_with_timeout,
    run_async,
    run_with_retry,
    wait_for_external_signal,
)
from perdure.error_mapping import ErrorMapping
from perdure.errors import Conflict, Refused
from perdure.observability.events import Failed
from perdure.observability.hooks import add_hooks
from perdure.runs import RunFuture

SECOND = timedelta(seconds=1)


class Item(BaseModel):
    name: str


async def state(
    ctx: restate.ObjectContext, shared: restate.ObjectSharedContext, workflow: restate.WorkflowContext
) -> None:
    assert_type(await State(ctx, "n", int).get(), int | None)
    assert_type(await State(shared, "items", list[Item]).get(), list[Item] | None)
    assert_type(await State(ctx, "n", int, default=0).get(), int)
    assert_type(await State(ctx, "items", list[Item], default_factory=list[Item]).get(), list[Item])
    assert_type(await MutableState(ctx, "n", int).get(), int | None)
    assert_type(await ReadOnlyState(shared, "n", int).get(), int | None)
    assert_type(await MutableState(ctx, "n", int, default=0).get(), int)
    assert_type(
        await MutableState(ctx, "items", list[Item], default_factory=lambda: [Item(name="x")]).get(), list[Item]
    )
    await clear_all(ctx)

    await State(ctx, "n", int).set(5)
    await State(ctx, "n", int, default=0).clear()
    await State(workflow, "n", int).set(5)
    unknown: Any = ctx
    await State(unknown, "n", int).set(5)

    await State(ctx, "n", int).set("5")  # type: ignore[arg-type]
    MutableState(shared, "n", int)  # type: ignore[call-overload]
    await ReadOnlyState(ctx, "n", int).set(5)  # type: ignore[attr-defined]
    await clear_all(shared)  # type: ignore[arg-type]
    await State(shared, "n", int).set(5)  # type: ignore[misc]
    await State(shared, "n", int, default=0).clear()  # type: ignore[misc]


async def signals(ctx: restate.WorkflowContext, shared: restate.WorkflowSharedContext) -> None:
    signal = wait_for_external_signal(ctx, Item)
    assert_type(await signal.result(), Item)
    assert_type(await race_awakeable_with_timeout(ctx, signal, SECOND, Item(name="x")), tuple[Item, bool])
    promise = get_internal_signal(shared, "p", int)
    assert_type(await promise.result(), int)
    assert_type(await promise.peek(), int | None)
    race = await race_promise_with_timeout(ctx, "p", SECOND, int)
    assert_type(race, PromiseRaceResult[int])
    assert_type(race.value, int | None)

    await promise.resolve("5")  # type: ignore[arg-type]
    await race_awakeable_with_timeout(ctx, signal, 5, Item(name="x"))  # type: ignore[arg-type]


def item(name: str) -> Item:
    return Item(name=name)


async def item_async(name: str) -> Item:
    return Item(name=name)


async def runs(ctx: restate.Context) -> None:
    assert_type(await run_with_retry(ctx, "sync", item, "x"), Item)
    assert_type(await run_with_retry(ctx, RunConfig("async"), item_async, "x"), Item)
    assert_type(await run_with_retry(ctx, "lambda", lambda: 5), int)
    assert_type(run_async(ctx, "sync", item, "x"), RunFuture[Item])
    assert_type(await run_async(ctx, "async", item_async, "x"), Item)

    RunConfig("x", initial_delay=5)  # type: ignore[arg-type]
    await run_with_retry(ctx, 5, item, "x")  # type: ignore[call-overload]


def on_error(event: Failed) -> None: ...


def by_status(error: OSError) -> Exception | None:
    return Refused(str(error)) if error.errno else None


def observed() -> None:
    add_hooks(ObservabilityHooks(on_error=on_error, on_state_set=lambda event: event.key.strip()))
    ErrorMapping({ValueError: Conflict, OSError: by_status, ConnectionError: None})

    ObservabilityHooks(on_state_set=on_error)  # type: ignore[arg-type]
    ErrorMapping({ValueError: 5})  # type: ignore[dict-item]


async def determinism(ctx: restate.Context) -> None:
    assert_type(DeterministicHelpers(ctx).uuid(), UUID)
    assert_type(DeterministicHelpers(ctx).rand_choice(["a"]), str)
    assert_type(await Time(ctx).now(), datetime)
    assert_type(await Time(ctx).since(datetime.now()), timedelta)  # noqa: DTZ005 - only the type matters
