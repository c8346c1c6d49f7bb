"""Concurrent calls: results in the order of the input, failures with their index."""

from __future__ import annotations

from datetime import timedelta

import restate
from pydantic import BaseModel

from perdure import ServiceClient, fan_out, fan_out_fail, for_each, gather, handler, map_concurrent, process_batch, race
from perdure.clients import CallFuture
from perdure.errors import Refused


class Question(BaseModel):
    """A request for a price.

    Args:
        shop: The shop.
        price: The price that it returns.
        after_ms: Delay of the response.
    """

    shop: str
    price: int
    after_ms: int = 0


shops = restate.Service("TeaShops")
buyer = restate.Service("TeaBuyer")


@handler(shops)
async def ask(ctx: restate.Context, question: Question) -> int:
    """Return the price after the delay."""
    await ctx.sleep(timedelta(milliseconds=question.after_ms))
    if question.price <= 0:
        raise Refused(f"{question.shop} is closed", 409, "closed")
    return question.price


def _ask(ctx: restate.Context, questions: list[Question]) -> list[CallFuture[int]]:
    """Start all calls without waiting."""
    return [ServiceClient(ctx, ask).call_async(question) for question in questions]


@handler(buyer)
async def two(ctx: restate.Context, questions: list[Question]) -> tuple[int, int]:
    """Wait for both calls."""
    first, second = _ask(ctx, questions)
    return await gather(ctx, first, second)


@handler(buyer)
async def what_there_is(ctx: restate.Context, questions: list[Question]) -> dict[str, int | str]:
    """Collect prices and failures."""
    found = await fan_out(ctx, _ask(ctx, questions))
    failures = {index: error.message for index, error in found.errors.items()}
    prices = zip(questions, found.results, strict=True)
    return {question.shop: price or failures[index] for index, (question, price) in enumerate(prices)}


@handler(buyer)
async def all_or_nothing(ctx: restate.Context, questions: list[Question]) -> int:
    """Require all prices; the first failure cancels the other calls."""
    return sum(await fan_out_fail(ctx, _ask(ctx, questions), cancel_losers=True))


@handler(buyer)
async def quickest(ctx: restate.Context, questions: list[Question]) -> str:
    """Return the first price and cancel the other calls."""
    first = await race(ctx, *_ask(ctx, questions), cancel_losers=True)
    return f"{questions[first.index].shop} for {first.winner}"


@handler(buyer)
async def two_at_a_time(ctx: restate.Context, questions: list[Question]) -> list[int]:
    """Call at most two shops concurrently; `process_batch` would call pairs."""
    prices = await map_concurrent(ctx, questions, lambda each, _: ServiceClient(ctx, ask).call_async(each), limit=2)
    again = await process_batch(ctx, questions, lambda each, _: ServiceClient(ctx, ask).call_async(each), size=2)
    return prices if prices == again else []


@handler(buyer)
async def one_by_one(ctx: restate.Context, questions: list[Question]) -> list[str]:
    """Call one shop after the other."""
    said: list[str] = []

    async def body(question: Question, index: int) -> None:
        said.append(f"{index}: {await ServiceClient(ctx, ask).call(question)}")

    await for_each(ctx, questions, body)
    return said
