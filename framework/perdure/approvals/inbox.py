"""`ApprovalInbox`: what waits for a person or a group, keyed by the name.

Approvals that anyone may decide are in the inbox `perdure.people.ANYONE`, once, and not in everyone's. Those for a
group whose members the request doesn't name are in the group's, ``group:finance``.

Each approval is a state entry of its own, so that adding one costs the same however many there are. The entry's name
begins with the deadline, and the state is loaded on demand: a page costs the names of all entries (about 70 bytes each)
and the entries of the page, whatever the payloads of the others weigh.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import restate

from perdure.approvals.inbox_messages import MAX_PAGE, InboxItem, InboxPage, InboxQuery, InboxRemoval
from perdure.approvals.targets import INBOX, add_to_inbox, list_inbox, remove_from_inbox
from perdure.binding import handler
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import InvalidInput
from perdure.people import canonical_person
from perdure.serdes import serde_for
from perdure.state import State
from perdure.targets import Target

_PREFIX: Final = "open/"
_MOMENT: Final = "%Y%m%dT%H%M%S.%f"
_item_serde = serde_for(InboxItem)

InboxAnswer = list[InboxItem] | InboxPage
_whole_inbox: Target[InboxQuery | None, InboxAnswer] = Target(
    INBOX,
    list_inbox.handler,
    InboxQuery | None,  # type: ignore[arg-type] # a union is no class, and a serde takes it all the same
    InboxAnswer,  # type: ignore[arg-type] # likewise
)

inboxes = restate.VirtualObject(
    INBOX, description="The open approvals that wait for a person, a group, or anyone.", state_preload=False
)


@handler(inboxes, "shared", name=list_inbox.handler, ingress_private=False)
async def list_(ctx: restate.ObjectSharedContext, query: InboxQuery | None) -> InboxAnswer:
    """Show the open approvals that wait for someone, the most urgent first; with a query, a page of them."""
    person = canonical_person(ctx.key())
    if not person:
        raise InvalidInput("whose inbox? The name of a person is needed", metadata={"field": "person"})
    if person != ctx.key():
        return await ObjectClient(ctx, _whole_inbox, person).call(query)
    now = await Time(ctx).now()
    # An approval whose end was lost still ends with its deadline, and a delegation with its own end.
    since = f"{_PREFIX}{_written(now)}"
    names = sorted(name for name in await ctx.state_keys() if name.startswith(_PREFIX) and name > since)
    after = "" if query is None or query.after is None else f"{_PREFIX}{query.after}"
    following = [name for name in names if name > after]
    page = following[: MAX_PAGE if query is None else query.limit]
    # All are asked for before the first is awaited, so that it takes one round trip.
    entries = [ctx.get(name, serde=_item_serde) for name in page]
    items = [item for entry in entries if (item := await entry) is not None]
    if query is None:
        return items
    more = len(following) > len(page)
    return InboxPage(items=items, next=page[-1].removeprefix(_PREFIX) if more else None, total=len(names))


@handler(inboxes, "exclusive", name=add_to_inbox.handler, ingress_private=True)
async def add(ctx: restate.ObjectContext, item: InboxItem) -> None:
    """Put an open approval into this inbox."""
    await State(ctx, _name(item.approval_id, item.deadline), InboxItem).set(item)


@handler(inboxes, "exclusive", name=remove_from_inbox.handler, ingress_private=True)
async def remove(ctx: restate.ObjectContext, gone: InboxRemoval) -> None:
    """Take an approval out of this inbox."""
    await State(ctx, _name(gone.approval_id, gone.deadline), InboxItem).clear()


def _name(approval_id: str, deadline: datetime) -> str:
    return f"{_PREFIX}{_written(deadline)}/{approval_id}"


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(_MOMENT)
