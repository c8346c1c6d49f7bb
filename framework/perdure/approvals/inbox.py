"""`ApprovalInbox`: what waits for a person or a group, keyed by the name.

Approvals that anyone may decide are kept in the inbox `perdure.security.user_names.ANYONE`, once, and not in
everyone's. Those for a group whose members the request doesn't name are in the group's, ``group:finance``. A person's
list has them, too: it is merged when it is asked for.

Each approval is a state entry of its own, so that adding one costs the same however many there are. The entry's name
begins with the deadline, and the state is loaded on demand: a page costs the names of all entries (about 70 bytes each)
and the entries of the page, whatever the payloads of the others weigh.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import restate

from perdure._runtime.serdes import serde_for
from perdure.approvals.inbox_messages import MAX_PAGE, InboxItem, InboxPage, InboxQuery, InboxRemoval
from perdure.approvals.targets import INBOX, add_to_inbox, list_inbox, remove_from_inbox
from perdure.clients import ObjectClient
from perdure.concurrency import fan_out_fail
from perdure.determinism import Time
from perdure.errors import InvalidInput
from perdure.handlers import handler
from perdure.security.user_names import ANYONE, GROUP_PREFIX, canonical_user, is_group
from perdure.state import State
from perdure.targets import Target

_PREFIX: Final = "open/"
_MOMENT: Final = "%Y%m%dT%H%M%S.%f"
_item_serde = serde_for(InboxItem)

_page: Target[InboxQuery, InboxPage] = Target(INBOX, "page", InboxQuery, InboxPage)

inboxes = restate.VirtualObject(
    INBOX, description="The open approvals that wait for a person, a group, or anyone.", state_preload=False
)


@handler(inboxes, "shared", name=list_inbox.handler, read_only=True, ingress_private=False)
async def list_(ctx: restate.ObjectSharedContext, query: InboxQuery | None) -> list[InboxItem] | InboxPage:
    """Show the open approvals that a person may decide, the most urgent first; with a query, a page of them.

    They are those that name the person, those of the groups that the query names, and those that anyone else than who
    asks may decide. Of a group, or of `perdure.security.user_names.ANYONE`, only what is in that inbox is shown.
    """
    person = canonical_user(ctx.key())
    if not person:
        raise InvalidInput("whose inbox? The name of a person is needed", metadata={"field": "person"})
    asked = query or InboxQuery(limit=MAX_PAGE)
    names = [person]
    if person != ANYONE and not is_group(person):
        names += [*dict.fromkeys(f"{GROUP_PREFIX}{group}" for group in asked.groups), ANYONE]
    pages = await fan_out_fail(ctx, [ObjectClient(ctx, _page, name).call_async(asked) for name in names])
    whole = merged(pages, asked.limit)
    # A requester or subject cannot decide, so their inbox does not list it.
    items = [item for item in whole.items if not item.excludes(person)]
    return items if query is None else whole.model_copy(update={"items": items})


@handler(inboxes, "shared", name=_page.handler, ingress_private=True)
async def page(ctx: restate.ObjectSharedContext, query: InboxQuery) -> InboxPage:
    """Show a page of this inbox, and no other."""
    now = await Time(ctx).now()
    # An approval whose end was lost still ends with its deadline, and a delegation with its own end.
    since = f"{_PREFIX}{_written(now)}"
    names = sorted(name for name in await ctx.state_keys() if name.startswith(_PREFIX) and name > since)
    after = "" if query.after is None else f"{_PREFIX}{query.after}"
    following = [name for name in names if name > after]
    wanted = following[: query.limit]
    # All are asked for before the first is awaited, so that it takes one round trip.
    entries = [ctx.get(name, serde=_item_serde) for name in wanted]
    items = [item for entry in entries if (item := await entry) is not None]
    more = len(following) > len(wanted)
    return InboxPage(items=items, next=wanted[-1].removeprefix(_PREFIX) if more else None, total=len(names))


def merged(pages: Sequence[InboxPage], limit: int) -> InboxPage:
    """Return the most urgent approvals of several inboxes, each once.

    Args:
        pages: A page of each, of the same size and after the same place.
        limit: How many approvals at most.
    """
    # Two inboxes that have the same at the same place: the first one's counts.
    found = {_place(item.approval_id, item.deadline): item for page in reversed(pages) for item in page.items}
    places = sorted(found)[:limit]
    more = len(found) > limit or any(page.next is not None for page in pages)
    items: dict[str, InboxItem] = {}
    for place in places:  # and at two places, as when one of them is a delegation's end: the more urgent one
        items.setdefault(found[place].approval_id, found[place])
    return InboxPage(
        items=list(items.values()), next=places[-1] if more else None, total=sum(page.total for page in pages)
    )


@handler(inboxes, "exclusive", name=add_to_inbox.handler, ingress_private=True)
async def add(ctx: restate.ObjectContext, item: InboxItem) -> None:
    """Put an open approval into this inbox."""
    await State(ctx, _name(item.approval_id, item.deadline), InboxItem).set(item)


@handler(inboxes, "exclusive", name=remove_from_inbox.handler, ingress_private=True)
async def remove(ctx: restate.ObjectContext, gone: InboxRemoval) -> None:
    """Take an approval out of this inbox."""
    await State(ctx, _name(gone.approval_id, gone.deadline), InboxItem).clear()


def _name(approval_id: str, deadline: datetime) -> str:
    return f"{_PREFIX}{_place(approval_id, deadline)}"


def _place(approval_id: str, deadline: datetime) -> str:
    return f"{_written(deadline)}/{approval_id}"


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(_MOMENT)
