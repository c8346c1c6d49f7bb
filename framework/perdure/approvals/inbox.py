"""`ApprovalInbox`: open approvals of a person or group, keyed by the name.

An approval that anyone may decide is only in the inbox of `perdure.security.user_names.ANYONE`. One for a group with
unknown members is only in the inbox of ``group:finance``. A person's list merges these inboxes on request.

Every approval is one state entry, loaded on demand, whose key begins with the deadline. Adding an item costs the same
at any size. A page loads all keys (about 70 bytes each) and the items of the page.
"""

from __future__ import annotations

from collections.abc import Sequence

import restate

from perdure._runtime.unreadable import EntryRead, UnreadableEntry
from perdure.approvals.messages import MAX_PAGE, InboxItem, InboxPage, InboxQuery, InboxRemoval, UnreadableInboxItem
from perdure.approvals.schema import INBOX, INBOX_PREFIX, inbox_cursor, inbox_position
from perdure.approvals.targets import add_to_inbox, list_inbox, remove_from_inbox
from perdure.clients import ObjectClient
from perdure.concurrency import fan_out_fail
from perdure.determinism import Time
from perdure.errors import InvalidInput
from perdure.handlers import handler
from perdure.observability.logging import get_logger
from perdure.security.user_names import ANYONE, GROUP_PREFIX, canonical_user, is_group
from perdure.state import State
from perdure.targets import KeyedTarget

log = get_logger("perdure.approvals")

_page = KeyedTarget(INBOX, "page", InboxQuery, InboxPage)


class ApprovalInbox:
    """Handlers of `ApprovalInbox`."""

    def __init__(self) -> None:
        self.definition = restate.VirtualObject(
            INBOX, description="Open approvals of a person, a group, or anyone.", state_preload=False
        )
        handler(self.definition, "shared", name=list_inbox.handler, read_only=True, ingress_private=False)(self.list_)
        handler(self.definition, "shared", name=_page.handler, ingress_private=True)(self.page)
        handler(self.definition, "exclusive", name=add_to_inbox.handler, ingress_private=True)(self.add)
        handler(self.definition, "exclusive", name=remove_from_inbox.handler, ingress_private=True)(self.remove)

    async def list_(self, ctx: restate.ObjectSharedContext, query: InboxQuery | None) -> list[InboxItem] | InboxPage:
        """Return the open approvals that a person may decide, ordered by deadline; with a query, one page.

        They include the approvals of the query's groups and those that anyone may decide.
        """
        person = canonical_user(ctx.key())
        if not person:
            raise InvalidInput("the key is empty: use the name of a person or group", metadata={"field": "person"})
        page_query = query or InboxQuery(limit=MAX_PAGE)
        names = [person]
        if person != ANYONE and not is_group(person):
            names += [*dict.fromkeys(f"{GROUP_PREFIX}{group}" for group in page_query.groups), ANYONE]
        pages = await fan_out_fail(ctx, [ObjectClient(ctx, _page, name).call_async(page_query) for name in names])
        merged = merge_pages(pages, page_query.limit)
        items = [item for item in merged.items if not item.excludes(person)]
        return items if query is None else merged.model_copy(update={"items": items})

    async def page(self, ctx: restate.ObjectSharedContext, query: InboxQuery) -> InboxPage:
        """Return one page of this inbox alone."""
        now = await Time(ctx).now()
        # Expired items are skipped: their removal may have been killed.
        since = f"{INBOX_PREFIX}{inbox_position(now)}"
        keys = sorted(key for key in await ctx.state_keys() if key.startswith(INBOX_PREFIX) and key > since)
        after = "" if query.after is None else f"{INBOX_PREFIX}{query.after}"
        following = [key for key in keys if key > after]
        selected = following[: query.limit]
        # All reads start before the first one is awaited, for one round trip.
        reads = {key: EntryRead(ctx, key, InboxItem) for key in selected}
        items: list[InboxItem] = []
        unreadable: list[UnreadableInboxItem] = []
        for key, read in reads.items():
            item = await read
            if isinstance(item, UnreadableEntry):
                approval_id = key.removeprefix(INBOX_PREFIX).partition("/")[2]
                unreadable.append(UnreadableInboxItem(approval_id=approval_id, error=f"the approval {item.reason}"))
                log.warning("approvals.inbox.unreadable", inbox=ctx.key(), approval=approval_id, reason=item.reason)
            elif item is not None:
                items.append(item)
        has_more = len(following) > len(selected)
        cursor = selected[-1].removeprefix(INBOX_PREFIX) if has_more else None
        return InboxPage(items=items, unreadable=unreadable, next=cursor, total=len(keys))

    async def add(self, ctx: restate.ObjectContext, item: InboxItem) -> None:
        """Add an open approval."""
        await State(ctx, _key(item), InboxItem).set(item)

    async def remove(self, ctx: restate.ObjectContext, removal: InboxRemoval) -> None:
        """Remove an approval."""
        await State(ctx, _key(removal), InboxItem).clear()


def merge_pages(pages: Sequence[InboxPage], limit: int) -> InboxPage:
    """Return the most urgent approvals of the same page of several inboxes, without duplicates."""
    # Of equal positions, the item of the first inbox is used.
    found = {inbox_cursor(item.approval_id, item.deadline): item for page in reversed(pages) for item in page.items}
    positions = sorted(found)[:limit]
    has_more = len(found) > limit or any(page.next is not None for page in pages)
    items: dict[str, InboxItem] = {}
    for position in positions:  # an approval with a delegation's expiry has two; the more urgent one is used
        items.setdefault(found[position].approval_id, found[position])
    return InboxPage(
        items=list(items.values()),
        unreadable=list({each.approval_id: each for page in pages for each in page.unreadable}.values()),
        next=positions[-1] if has_more else None,
        total=sum(page.total for page in pages),
    )


def _key(item: InboxItem | InboxRemoval) -> str:
    return f"{INBOX_PREFIX}{inbox_cursor(item.approval_id, item.deadline)}"
