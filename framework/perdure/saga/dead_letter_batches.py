"""Client of bulk actions on dead letters: signs and sends one batch after the other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from perdure.saga.messages import (
    MAX_PAGE,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetterListRequest,
    DeadLetterPage,
)
from perdure.saga.schema import DEAD_LETTERS
from perdure.saga.signatures import sign_action
from perdure.security.signed_actions import ActorKey
from perdure.targets import Target

I = TypeVar("I")  # noqa: E741 - input, as in `clients`
O = TypeVar("O")  # noqa: E741 - output

list_dead_letters: Final = Target(DEAD_LETTERS, "list", DeadLetterListRequest, DeadLetterPage)
act_on_dead_letters: Final = Target(DEAD_LETTERS, "act_on_many", BulkActionRequest, BulkActionReceipt)


class Caller(Protocol):
    """A client of the ingress."""

    async def call(self, target: Target[I, O, Any], request: I, /) -> O:
        """Call a handler."""
        ...


async def act_on_batch(client: Caller, request: BulkActionRequest, key: ActorKey | None) -> BulkActionReceipt:
    """Act on the first batch of a request, and return its receipt; see `next_batch`.

    Args:
        client: Calls the handlers.
        request: The request, without signed actions.
        key: Signs the action on each dead letter; None for unsigned actions.
    """
    if key is None:
        return await client.call(act_on_dead_letters, request)
    query = DeadLetterListRequest(
        **request.filter.model_dump(), page_size=MAX_PAGE, after=request.after, until=request.until
    )
    page = await client.call(list_dead_letters, query)
    now = datetime.now(UTC)
    signed = request.model_copy(
        update={
            "signed_actions": {
                letter.id: sign_action(key, request.action, letter, reason=request.reason, at=now)
                for letter in page.items
            },
            # The dead letters after the page are not signed.
            "until": page.next or request.until or page.end,
        }
    )
    receipt = await client.call(act_on_dead_letters, signed)
    unreadable = {each.id: f"not signed: {each.error}" for each in page.unreadable if each.id in receipt.refused}
    return receipt.model_copy(
        update={
            "refused": receipt.refused | unreadable,
            "next": page.next,
            "until": request.until or page.end,
            "remaining": page.remaining,
        }
    )


def next_batch(request: BulkActionRequest, receipt: BulkActionReceipt) -> BulkActionRequest | None:
    """Return the request for the batch after a receipt; None after the last one."""
    if receipt.next is None:
        return None
    return request.model_copy(update={"after": receipt.next, "until": receipt.until})
