"""Waiting for an answer, but not for ever: a race against a durable timer."""

from __future__ import annotations

from datetime import timedelta

import restate
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    Orchestration,
    ServiceClient,
    get_internal_signal,
    handler,
    race_awakeable_with_timeout,
    race_promise_with_timeout,
    resolve_external_signal,
    wait_for_external_signal,
)

LIST_PRICE = 100


class Enquiry(BaseModel):
    """What somebody wants to buy.

    Args:
        item: The item.
        patience: How long to wait for each answer.
    """

    item: str
    patience: timedelta = timedelta(days=1)


class Question(BaseModel):
    """What a supplier is asked.

    Args:
        item: The item.
        answer_to: The signal that takes the price.
    """

    item: str
    answer_to: str


class Offer(BaseModel):
    """What the buyer gets.

    Args:
        price: The supplier's price, or the list price when the supplier said nothing.
        estimated: The supplier said nothing.
        accepted_by: Who accepted it; None when nobody did in time.
    """

    price: int
    estimated: bool
    accepted_by: str | None


suppliers = restate.Service("Suppliers")


@handler(suppliers)
async def quote(ctx: restate.Context, question: Question) -> None:
    """Answer with a price; for the unicorn, don't answer at all."""
    if question.item != "unicorn":
        resolve_external_signal(ctx, question.answer_to, 80)


offers = ControlPlaneService("Offers")


@offers.main
async def make_offer(cp: Orchestration, enquiry: Enquiry) -> Offer:
    """Ask the supplier for a price, then the buyer for a yes; wait for each as long as the buyer has patience."""
    signal = wait_for_external_signal(cp.ctx, int)
    await ServiceClient(cp.ctx, quote).send(Question(item=enquiry.item, answer_to=signal.id))
    price, timed_out = await race_awakeable_with_timeout(cp.ctx, signal, enquiry.patience, LIST_PRICE)
    accepted = await race_promise_with_timeout(cp.ctx, "accepted", enquiry.patience, str)
    return Offer(price=price, estimated=timed_out, accepted_by=accepted.value)


@offers.handler(public=True)
async def accept(ctx: restate.WorkflowSharedContext, buyer: str) -> None:
    """Say yes."""
    await get_internal_signal(ctx, "accepted", str).resolve(buyer)
