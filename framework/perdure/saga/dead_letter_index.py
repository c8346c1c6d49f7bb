"""`DeadLetterIndex`: the open dead letters, spread over 8 objects by their IDs.

Each dead letter has two state entries, loaded on demand: its content, and a small one whose name contains all facts
that a list filters, sorts and counts by. So adding and removing one costs the same at any size. A page loads the names
(about 150 bytes each) and the contents of the page.

Names are not encrypted. The step and the error signature are therefore in them as digests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2s
from heapq import merge
from itertools import islice
from typing import Any, Final, Self
from urllib.parse import quote, unquote

import restate
from pydantic import BaseModel

from perdure._runtime.dispatch import DAY_LONG_RETRIES
from perdure._runtime.unreadable import EntryRead, UnreadableEntry
from perdure.clients import ObjectClient
from perdure.concurrency import fan_out_fail
from perdure.handlers import handler
from perdure.runs import run_with_retry
from perdure.saga.messages import Cursor, DeadLetter, DeadLetterFilter, UnreadableDeadLetter
from perdure.saga.schema import DEAD_LETTER_INDEX, DEAD_LETTER_PREFIX, DEAD_LETTER_SHARDS, LISTED_PREFIX
from perdure.state import State
from perdure.targets import KeyedTarget

_FIELDS: Final = 7
_DIGEST_BITS: Final = 128


@dataclass(frozen=True, slots=True)
class ListedLetter:
    """A dead letter as the name of its small entry describes it.

    Args:
        since: When it became a dead letter, in UTC and sortable.
        service: The saga's service.
        step: The digest of the step's name.
        signature: The digest of the error signature.
        redriven: Number of redrives.
        size: Bytes of its content as JSON.
        id: The dead letter.
    """

    since: str
    service: str
    step: str
    signature: str
    redriven: int
    size: int
    id: str

    @classmethod
    def of(cls, letter: DeadLetter) -> Self:
        """Return the description of a dead letter."""
        since = f"{letter.since.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        size = len(letter.model_dump_json())
        step, signature = _short_digest(letter.step), _short_digest(letter.signature)
        return cls(since, letter.service, step, signature, letter.redriven, size, letter.id)

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """Return the description in a cursor."""
        since, service, step, signature, redriven, size, id_ = cursor.split("/", _FIELDS - 1)
        return cls(since, unquote(service), step, signature, int(redriven), int(size), id_)

    @property
    def cursor(self) -> str:
        """The name of the entry without prefix; cursors sort by age."""
        service = quote(self.service, safe="")
        return f"{self.since}/{service}/{self.step}/{self.signature}/{self.redriven}/{self.size}/{self.id}"

    @property
    def saga_id(self) -> str:
        """The saga."""
        return self.id.rpartition("/")[0]

    @property
    def became_at(self) -> datetime:
        """When it became a dead letter."""
        return datetime.fromisoformat(self.since)


def _short_digest(text: str) -> str:
    return blake2s(text.encode(), digest_size=6).hexdigest()


def _number(cursor: str) -> int:
    return int.from_bytes(blake2s(cursor.encode(), digest_size=_DIGEST_BITS // 8).digest())


def combined_digest(numbers: Iterable[int]) -> str:
    """Return the digest of a set of dead letters, whatever their order, from the sums of its parts."""
    return f"{sum(numbers) % 2**_DIGEST_BITS:032x}"


class Selection(BaseModel):
    """Query for dead letters.

    Args:
        filter: The dead letters.
        after: The first ones follow this cursor.
        until: The last one has at most this cursor.
        limit: Largest number of cursors to return.
    """

    filter: DeadLetterFilter
    after: Cursor | None = None
    until: Cursor | None = None
    limit: int


class SelectedGroup(BaseModel):
    """Matches with the same error signature.

    Args:
        count: Their number.
        number: The sum of the numbers that their cursors have.
        sample: One of their cursors.
    """

    count: int = 0
    number: int = 0
    sample: str


class Selected(BaseModel):
    """Matches of a selection.

    Args:
        cursors: The first matches, oldest first.
        following: Number of matches in the range of the cursors.
        groups: All matches by the digest of their error signature.
        end: Cursor of the newest match.
    """

    cursors: list[str]
    following: int
    groups: dict[str, SelectedGroup]
    end: str | None

    @property
    def total(self) -> int:
        """Number of matches."""
        return sum(group.count for group in self.groups.values())


class Contents(BaseModel):
    """Request for the contents of dead letters.

    Args:
        letters: Their cursors.
        signatures: Cursors of dead letters whose error signatures are required.
    """

    letters: list[str] = []
    signatures: list[str] = []


class FoundContents(BaseModel):
    """Contents of dead letters, by their cursors; none for those that were removed meanwhile."""

    letters: dict[str, DeadLetter] = {}
    unreadable: dict[str, UnreadableDeadLetter] = {}
    signatures: dict[str, str] = {}


put_target = KeyedTarget(DEAD_LETTER_INDEX, "put", DeadLetter, None)
remove_target = KeyedTarget(DEAD_LETTER_INDEX, "remove", str, None)
_select = KeyedTarget(DEAD_LETTER_INDEX, "select", Selection, Selected)
_read = KeyedTarget(DEAD_LETTER_INDEX, "read", Contents, FoundContents)


def shard_of(letter_id: str) -> str:
    """Return the key of the object that lists a dead letter."""
    return DEAD_LETTER_SHARDS[blake2s(letter_id.encode(), digest_size=1).digest()[0] % len(DEAD_LETTER_SHARDS)]


def _signature_state(ctx: Any, cursor: str) -> State[str]:
    return State(ctx, LISTED_PREFIX + cursor, str)


def _content_state(ctx: Any, letter_id: str) -> State[DeadLetter]:
    return State(ctx, DEAD_LETTER_PREFIX + letter_id, DeadLetter)


class DeadLetterIndex:
    """Handlers of `DeadLetterIndex`."""

    def __init__(self) -> None:
        self.definition = restate.VirtualObject(
            DEAD_LETTER_INDEX,
            description="Index of the dead letters.",
            ingress_private=True,
            invocation_retry_policy=DAY_LONG_RETRIES,
            enable_lazy_state=True,
        )
        handler(self.definition, "exclusive")(self.put)
        handler(self.definition, "exclusive")(self.remove)
        handler(self.definition, "shared")(self.select)
        handler(self.definition, "shared")(self.read)

    async def put(self, ctx: restate.ObjectContext, letter: DeadLetter) -> None:
        """Add a dead letter; a repeated one changes nothing."""
        known = await _known(ctx, letter.id)
        new = ListedLetter.of(letter)
        if [each.redriven for each in known] == [letter.redriven]:
            new = known[0]  # a kill may have prevented its entry
        else:
            for each in known:
                await _signature_state(ctx, each.cursor).clear()
            await _content_state(ctx, letter.id).set(letter)
        # Last, so that a listed dead letter has a content.
        await _signature_state(ctx, new.cursor).set(letter.signature)

    async def remove(self, ctx: restate.ObjectContext, letter_id: str) -> None:
        """Remove a dead letter."""
        for each in await _known(ctx, letter_id):
            await _signature_state(ctx, each.cursor).clear()
        await _content_state(ctx, letter_id).clear()

    async def select(self, ctx: restate.ObjectSharedContext, selection: Selection) -> Selected:
        """Return the matching dead letters of this object, by their names alone."""
        cursors = sorted(
            name.removeprefix(LISTED_PREFIX) for name in await ctx.state_keys() if name.startswith(LISTED_PREFIX)
        )
        return select_from(cursors, selection)

    async def read(self, ctx: restate.ObjectSharedContext, request: Contents) -> FoundContents:
        """Return the contents of dead letters of this object."""
        listed = {cursor: ListedLetter.parse(cursor) for cursor in request.letters}
        contents = {cursor: EntryRead(ctx, DEAD_LETTER_PREFIX + each.id, DeadLetter) for cursor, each in listed.items()}
        texts = {cursor: EntryRead(ctx, LISTED_PREFIX + cursor, str) for cursor in request.signatures}
        found = FoundContents()
        for cursor, content in contents.items():
            letter = await content
            if isinstance(letter, UnreadableEntry):
                found.unreadable[cursor] = _unreadable(listed[cursor], letter.reason)
            elif letter is not None:
                found.letters[cursor] = letter
        for cursor, text in texts.items():
            signature = await text
            if isinstance(signature, UnreadableEntry):
                signature = f"(cannot be read: {ListedLetter.parse(cursor).signature})"
            if signature is not None:
                found.signatures[cursor] = signature
        return found


async def _known(ctx: restate.ObjectContext, letter_id: str) -> list[ListedLetter]:
    """Return the descriptions of a dead letter in the index: none, one, or several after a kill."""
    content = await EntryRead(ctx, DEAD_LETTER_PREFIX + letter_id, DeadLetter)
    if content is None:
        return []
    # Journaled, since another process may have other keys and read what this one cannot.
    readable = "" if isinstance(content, UnreadableEntry) else ListedLetter.of(content).cursor
    cursor = await run_with_retry(ctx, "read the dead letter", _same, readable)
    if cursor:
        return [ListedLetter.parse(cursor)]
    suffix = f"/{letter_id}"
    names = [name for name in await ctx.state_keys() if name.startswith(LISTED_PREFIX) and name.endswith(suffix)]
    listed = [ListedLetter.parse(name.removeprefix(LISTED_PREFIX)) for name in names]
    return [each for each in listed if each.id == letter_id]


async def _same(text: str) -> str:
    return text


def _unreadable(listed: ListedLetter, reason: str) -> UnreadableDeadLetter:
    return UnreadableDeadLetter(
        id=listed.id,
        saga_id=listed.saga_id,
        service=listed.service,
        since=listed.became_at,
        error=f"the dead letter {reason}",
    )


def select_from(cursors: Iterable[str], selection: Selection) -> Selected:
    """Return the matches among the sorted cursors of an object."""
    wanted = selection.filter
    step = None if wanted.step is None else _short_digest(wanted.step)
    signature = None if wanted.signature is None else _short_digest(wanted.signature)
    first: list[str] = []
    groups: dict[str, SelectedGroup] = {}
    following, end = 0, None
    for cursor in cursors:
        listed = ListedLetter.parse(cursor)
        if (
            wanted.id not in (None, listed.id)
            or wanted.saga_id not in (None, listed.saga_id)
            or wanted.service not in (None, listed.service)
            or step not in (None, listed.step)
            or signature not in (None, listed.signature)
        ):
            continue
        end = cursor
        group = groups.setdefault(listed.signature, SelectedGroup(sample=cursor))
        group.count += 1
        group.number += _number(cursor)
        if (selection.after or "") < cursor and (selection.until is None or cursor <= selection.until):
            following += 1
            if len(first) < selection.limit:
                first.append(cursor)
    return Selected(cursors=first, following=following, groups=groups, end=end)


def merge_selected(parts: Iterable[Selected], limit: int) -> Selected:
    """Return the matches of several objects as one selection."""
    parts = list(parts)
    groups: dict[str, SelectedGroup] = {}
    for part in parts:
        for digest, each in part.groups.items():
            group = groups.setdefault(digest, SelectedGroup(sample=each.sample))
            group.count += each.count
            group.number += each.number
            group.sample = min(group.sample, each.sample)
    return Selected(
        cursors=list(islice(merge(*(part.cursors for part in parts)), limit)),
        following=sum(part.following for part in parts),
        groups=groups,
        end=max((part.end for part in parts if part.end is not None), default=None),
    )


async def select_letters(ctx: restate.Context, selection: Selection) -> Selected:
    """Return the matching dead letters of all objects."""
    calls = [ObjectClient(ctx, _select, shard).call_async(selection) for shard in DEAD_LETTER_SHARDS]
    return merge_selected(await fan_out_fail(ctx, calls), selection.limit)


async def read_letters(ctx: restate.Context, request: Contents) -> FoundContents:
    """Return the contents of dead letters."""
    parts: defaultdict[str, Contents] = defaultdict(Contents)
    for field in Contents.model_fields:
        for cursor in getattr(request, field):
            getattr(parts[shard_of(ListedLetter.parse(cursor).id)], field).append(cursor)
    calls = [ObjectClient(ctx, _read, shard).call_async(part) for shard, part in sorted(parts.items())]
    found = FoundContents()
    for answer in await fan_out_fail(ctx, calls):
        for field in FoundContents.model_fields:
            getattr(found, field).update(getattr(answer, field))
    return found
