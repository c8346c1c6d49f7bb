"""Types of concurrent operations."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

import restate

from perdure import (
    FanOutResult,
    RaceResult,
    ServiceClient,
    Target,
    fan_out,
    fan_out_fail,
    for_each,
    gather,
    get_internal_signal,
    map_concurrent,
    process_batch,
    race,
    run_async,
    wait_for_external_signal,
)

square = Target("Numbers", "square", int, int)
name = Target("Numbers", "name", int, str)


async def spelled(number: int, index: int) -> str:
    return f"{number} {index}"


def one() -> int:
    return 1


async def functions(ctx: restate.Context, numbers: list[int]) -> None:
    client = ServiceClient(ctx, square)
    assert_type(await map_concurrent(ctx, numbers, spelled), list[str])
    assert_type(await map_concurrent(ctx, numbers, lambda number, _: client.call_async(number), limit=3), list[int])
    assert_type(await map_concurrent(ctx, numbers, lambda number, _: client.call(number)), list[int])
    assert_type(await process_batch(ctx, numbers, spelled, size=5), list[str])
    assert_type(await for_each(ctx, numbers, spelled), None)

    await map_concurrent(ctx, ["one"], spelled)  # type: ignore[arg-type]
    await map_concurrent(ctx, numbers, one)  # type: ignore[arg-type]
    await process_batch(ctx, numbers, spelled, size="5")  # type: ignore[arg-type]
    await for_each(ctx, numbers, one)  # type: ignore[arg-type]


async def futures(ctx: restate.WorkflowContext) -> None:
    call, run = ServiceClient(ctx, square).call_async(1), run_async(ctx, "one", one)
    named = ServiceClient(ctx, name).call_async(1)
    assert_type(await fan_out(ctx, [call, call]), FanOutResult[int])
    assert_type((await fan_out(ctx, [call])).values(), list[int])
    assert_type((await fan_out(ctx, [call])).results, tuple[int | None, ...])
    assert_type(await fan_out_fail(ctx, [named]), list[str])
    assert_type(await gather(ctx, call, named), tuple[int, str])
    assert_type(await gather(ctx, call, run, named), tuple[int, int, str])
    assert_type(await gather(ctx, named, run, ctx.sleep(timedelta(seconds=1)), call), tuple[str, int, None, int])
    assert_type(await gather(ctx, *[call, call]), tuple[int, ...])
    assert_type(await race(ctx, call, run), RaceResult[int])
    assert_type((await race(ctx, call, run)).winner, int)
    signals = await gather(ctx, wait_for_external_signal(ctx, int), get_internal_signal(ctx, "word", str))
    assert_type(signals, tuple[int, str])

    await gather(ctx, call, ServiceClient(ctx, square).call(1))  # type: ignore[call-overload]
    await fan_out(ctx, [spelled(1, 1)])  # type: ignore[arg-type]
    await fan_out_fail(ctx, [1])  # type: ignore[arg-type]
    await race(ctx, spelled(1, 1))  # type: ignore[arg-type]
    await race(ctx, call, cancel_losers="yes")  # type: ignore[arg-type]
