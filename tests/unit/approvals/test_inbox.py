from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from perdure.approvals.inbox import merge_pages
from perdure.approvals.messages import InboxItem, InboxPage

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

Inbox = dict[str, int]
"""Approvals of one inbox, with the minutes until their deadline."""

inboxes = st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), max_size=8), min_size=1, max_size=3)


def item(approval_id: str, minutes: int, **more: str) -> InboxItem:
    return InboxItem(
        approval_id=approval_id, title="?", requester="req", quorum=1, opened_at=NOON, payload=None, payload_digest="",
        deadline=NOON + timedelta(minutes=minutes), **more,
    )  # fmt: skip


def cursor(found: InboxItem) -> str:
    return f"{found.deadline:%Y%m%dT%H%M%S.%f}/{found.approval_id}"


def page(inbox: Inbox, limit: int, after: str | None) -> InboxPage:
    items = sorted((item(name, minutes) for name, minutes in inbox.items()), key=cursor)
    following = [each for each in items if cursor(each) > (after or "")]
    cut = following[:limit]
    return InboxPage(items=cut, next=cursor(cut[-1]) if len(following) > limit else None, total=len(items))


@given(inboxes, st.integers(1, 5))
def test_pages_cover_all_items_in_order(several: list[Inbox], limit: int):
    seen: list[tuple[int, str]] = []
    after = None
    for _ in range(30):
        whole = merge_pages([page(inbox, limit, after) for inbox in several], limit)
        assert len(whole.items) <= limit
        assert whole.total == sum(map(len, several))
        seen += [(round((each.deadline - NOON).total_seconds() / 60), each.approval_id) for each in whole.items]
        after = whole.next
        if after is None:
            break
    assert after is None
    assert seen == sorted(seen)
    assert {name for _, name in seen} == {name for inbox in several for name in inbox}


def test_first_inbox_wins_for_duplicates():
    own = InboxPage(items=[item("T1", 5, addressee="ada")], next=None, total=1)
    group = InboxPage(items=[item("T1", 5, addressee="group:finance")], next=None, total=1)
    assert [each.addressee for each in merge_pages([own, group], 10).items] == ["ada"]


def test_earlier_delegation_expiry_wins_for_duplicates():
    own = InboxPage(items=[item("T1", 2, delegated_by="bob")], next=None, total=1)
    group = InboxPage(items=[item("T1", 5)], next=None, total=1)
    assert [each.delegated_by for each in merge_pages([group, own], 10).items] == ["bob"]
