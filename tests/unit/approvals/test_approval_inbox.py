from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from perdure.approvals.inbox import merged
from perdure.approvals.inbox_messages import InboxItem, InboxPage

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

Inbox = dict[str, int]
"""What is in one inbox: approvals, and how many minutes are left."""

inboxes = st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), max_size=8), min_size=1, max_size=3)


def item(approval_id: str, minutes: int, **more: str) -> InboxItem:
    return InboxItem(
        approval_id=approval_id, title="?", requester="req", quorum=1, opened_at=NOON, payload=None, payload_digest="",
        deadline=NOON + timedelta(minutes=minutes), **more,
    )  # fmt: skip


def place(found: InboxItem) -> str:
    return f"{found.deadline:%Y%m%dT%H%M%S.%f}/{found.approval_id}"


def page(inbox: Inbox, limit: int, after: str | None) -> InboxPage:
    items = sorted((item(name, minutes) for name, minutes in inbox.items()), key=place)
    following = [each for each in items if place(each) > (after or "")]
    cut = following[:limit]
    return InboxPage(items=cut, next=place(cut[-1]) if len(following) > limit else None, total=len(items))


@given(inboxes, st.integers(1, 5))
def test_page_by_page_everything_is_seen_in_its_order(several: list[Inbox], limit: int):
    seen: list[tuple[int, str]] = []
    after = None
    for _ in range(30):
        whole = merged([page(inbox, limit, after) for inbox in several], limit)
        assert len(whole.items) <= limit
        assert whole.total == sum(map(len, several))
        seen += [(round((each.deadline - NOON).total_seconds() / 60), each.approval_id) for each in whole.items]
        after = whole.next
        if after is None:
            break
    assert after is None
    assert seen == sorted(seen)
    assert {name for _, name in seen} == {name for inbox in several for name in inbox}


def test_what_is_in_two_inboxes_is_shown_once_as_in_the_first():
    own = InboxPage(items=[item("T1", 5, for_whom="ada")], next=None, total=1)
    group = InboxPage(items=[item("T1", 5, for_whom="group:finance")], next=None, total=1)
    assert [each.for_whom for each in merged([own, group], 10).items] == ["ada"]


def test_a_delegation_that_ends_sooner_is_the_more_urgent_one():
    own = InboxPage(items=[item("T1", 2, in_place_of="bob")], next=None, total=1)
    group = InboxPage(items=[item("T1", 5)], next=None, total=1)
    assert [each.in_place_of for each in merged([group, own], 10).items] == ["bob"]
