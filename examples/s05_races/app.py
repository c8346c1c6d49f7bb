"""Waits with a timeout: races against a durable timer."""

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
    """A buyer's enquiry.

    Args:
        item: The item.
        patience: Timeout for each answer.
    """

    item: str
    patience: timedelta = timedelta(days=1)


class Question(BaseModel):
    """A request to a supplier.

    Args:
        item: The item.
        answer_to: Signal for the price.
    """

    item: str
    answer_to: str


class Offer(BaseModel):
    """An offer to the buyer.

    Args:
        price: The supplier's price, or the list price without an answer.
        estimated: The supplier did not answer.
        accepted_by: The person who accepted it in time, if any.
    """

    price: int
    estimated: bool
    accepted_by: str | None


suppliers = restate.Service("Suppliers")


@handler(suppliers)
async def quote(ctx: restate.Context, question: Question) -> None:
    """Answer with a price, except for the unicorn."""
    if question.item != "unicorn":
        resolve_external_signal(ctx, question.answer_to, 80)


offers = ControlPlaneService("Offers")


@offers.main
async def make_offer(cp: Orchestration, enquiry: Enquiry) -> Offer:
    """Request a price from the supplier, then an acceptance from the buyer."""
    signal = wait_for_external_signal(cp.ctx, int)
    await ServiceClient(cp.ctx, quote).send(Question(item=enquiry.item, answer_to=signal.id))
    price, timed_out = await race_awakeable_with_timeout(cp.ctx, signal, enquiry.patience, LIST_PRICE)
    accepted = await race_promise_with_timeout(cp.ctx, "accepted", enquiry.patience, str)
    return Offer(price=price, estimated=timed_out, accepted_by=accepted.value)


@offers.handler(public=True)
async def accept(ctx: restate.WorkflowSharedContext, buyer: str) -> None:
    """Accept the offer."""
    await get_internal_signal(ctx, "accepted", str).resolve(buyer)
