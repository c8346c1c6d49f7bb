"""`ApprovalInbox`: what waits for a person, keyed by the person's name.

Approvals that anyone may decide are in the inbox `perdure.approvals.people.ANYONE`, once, and not in everyone's.

Each approval is a state entry of its own, so that adding one costs the same however many there are.
"""

from __future__ import annotations

from typing import Final

import restate

from perdure.approvals.messages import InboxItem
from perdure.approvals.people import canonical_person
from perdure.approvals.targets import INBOX, add_to_inbox, list_inbox, remove_from_inbox
from perdure.binding import handler
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import InvalidInput
from perdure.state import ReadOnlyState, State

_PREFIX: Final = "open/"

inboxes = restate.VirtualObject(INBOX, description="The open approvals that wait for a person, or for anyone.")


@handler(inboxes, "shared", name=list_inbox.handler)
async def list_(ctx: restate.ObjectSharedContext) -> list[InboxItem]:
    """Show the open approvals that wait for a person, the most urgent first."""
    person = canonical_person(ctx.key())
    if not person:
        raise InvalidInput("whose inbox? The name of a person is needed", metadata={"field": "person"})
    if person != ctx.key():
        return await ObjectClient(ctx, list_inbox, person).call()
    now = await Time(ctx).now()
    names = [name for name in await ctx.state_keys() if name.startswith(_PREFIX)]
    items = [await ReadOnlyState(ctx, name, InboxItem).get() for name in names]
    # An approval whose end was lost (its opener was killed while it was opened) still ends with its deadline.
    waiting = [item for item in items if item is not None and item.deadline > now]
    return sorted(waiting, key=lambda item: (item.deadline, item.approval_id))


@handler(inboxes, "exclusive", name=add_to_inbox.handler, ingress_private=True)
async def add(ctx: restate.ObjectContext, item: InboxItem) -> None:
    """Put an open approval into this inbox."""
    await _entry(ctx, item.approval_id).set(item)


@handler(inboxes, "exclusive", name=remove_from_inbox.handler, ingress_private=True)
async def remove(ctx: restate.ObjectContext, approval_id: str) -> None:
    """Take an approval out of this inbox."""
    await _entry(ctx, approval_id).clear()


def _entry(ctx: restate.ObjectContext, approval_id: str) -> State[InboxItem]:
    return State(ctx, f"{_PREFIX}{approval_id}", InboxItem)
