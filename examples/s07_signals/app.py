"""External signals (awakeables), answered by ID; internal signals (promises), completed by name."""

from __future__ import annotations

import hashlib
import hmac
import secrets

import restate
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    Orchestration,
    ServiceClient,
    get_internal_signal,
    handler,
    reject_external_signal,
    resolve_external_signal,
    wait_for_external_signal,
)


class Charge(BaseModel):
    """A request to the payment provider.

    Args:
        card: The card.
        amount: The amount.
        answer_to: Signal for the receipt.
    """

    card: str
    amount: int
    answer_to: str = ""


class Receipt(BaseModel):
    """The provider's answer.

    Args:
        number: The receipt's number.
        signature: The provider's signature over the number.
    """

    number: str
    signature: str


WEBHOOK_SECRET = secrets.token_bytes(32)
"""Key shared with the provider. A real application reads it from a secret store."""


def signature_of(number: str) -> str:
    """Return the provider's signature over a receipt's number."""
    return hmac.new(WEBHOOK_SECRET, number.encode(), hashlib.sha256).hexdigest()


def is_genuine(receipt: Receipt) -> bool:
    """Return whether a receipt is authentic. Every caller that knows the signal's ID can send one."""
    return hmac.compare_digest(receipt.signature, signature_of(receipt.number))


shop = restate.Service("Shop")
provider = restate.Service("Provider")


@handler(shop)
async def pay(ctx: restate.Context, charge: Charge) -> Receipt:
    """Pass a signal's ID to the provider and wait, without using memory."""
    signal = wait_for_external_signal(ctx, Receipt, check=is_genuine)
    await ServiceClient(ctx, call_back).send(charge.model_copy(update={"answer_to": signal.id}))
    return await signal.result()


@handler(provider)
async def call_back(ctx: restate.Context, charge: Charge) -> None:
    """Answer through the signal. A real provider's webhook posts to /restate/awakeables/{id}/resolve instead."""
    number = f"R-{charge.amount}"
    if charge.card == "stolen":
        reject_external_signal(ctx, charge.answer_to, "the card is blocked", 402)
    elif charge.card == "forged":
        resolve_external_signal(ctx, charge.answer_to, Receipt(number=number, signature="a guess"))
    else:
        resolve_external_signal(ctx, charge.answer_to, Receipt(number=number, signature=signature_of(number)))


documents = ControlPlaneService("Documents")


@documents.main
async def publish(cp: Orchestration, title: str) -> str:
    """Wait for the review of the document."""
    verdict = await get_internal_signal(cp.ctx, "review", str).result()
    return f"'{title}' was reviewed: {verdict}"


@documents.handler(public=True)
async def review(ctx: restate.WorkflowSharedContext, verdict: str) -> None:
    """Review the document, before or after the main handler waits."""
    await get_internal_signal(ctx, "review", str).resolve(verdict)
