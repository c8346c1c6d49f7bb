"""State entries that a list reads one by one, so that an entry that cannot be read does not hide the others."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import restate
from pydantic import ValidationError
from restate.serde import Serde

from perdure._runtime.serdes import TypedSerde, invalid_input, serde_for
from perdure.errors import UnreadableValue

T = TypeVar("T")


@dataclass(frozen=True)
class UnreadableEntry:
    """A state entry that this process cannot read.

    Args:
        reason: Why, and what to do.
    """

    reason: str


class _EntrySerde(Serde[Any], Generic[T]):
    def __init__(self, inner: TypedSerde[T]) -> None:
        self._inner = inner

    def serialize(self, obj: Any) -> bytes:
        return self._inner.serialize(obj)

    def deserialize(self, buf: bytes) -> T | UnreadableEntry | None:
        try:
            return self._inner.deserialize(buf)
        except ValidationError as error:
            problems = invalid_input(error, empty=not buf).message
            return UnreadableEntry(
                f"cannot be read as {self._inner.type_name}: {problems}. Deploy the version that wrote it"
            )


class EntryRead(Awaitable[T | UnreadableEntry | None], Generic[T]):
    """A read of a state entry. Several reads that start before the first is awaited take one round trip.

    Args:
        ctx: The context.
        name: The entry's name.
        type_: Its type.
    """

    def __init__(self, ctx: restate.ObjectContext | restate.ObjectSharedContext, name: str, type_: type[T]) -> None:
        self._entry = ctx.get(name, serde=_EntrySerde(serde_for(type_)))

    def __await__(self) -> Generator[Any, Any, T | UnreadableEntry | None]:
        try:
            return (yield from self._entry.__await__())
        except UnreadableValue as error:
            return UnreadableEntry(f"cannot be decrypted: {error}")
