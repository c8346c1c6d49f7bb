"""Ids, random numbers and time that are the same after any number of replays."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TypeVar
from uuid import UUID

import restate

from perdure._runtime.run_scope import refuse_inside_run
from perdure.errors import InvalidInput
from perdure.runs import run_with_retry

T = TypeVar("T")


class DeterministicHelpers:
    """Random values seeded by the invocation, so that a replay draws the same ones.

    Args:
        ctx: The handler's context.
    """

    def __init__(self, ctx: restate.Context) -> None:
        self._ctx = ctx

    def _random(self, what: str) -> Random:
        refuse_inside_run(what)
        return self._ctx.random()

    def uuid(self) -> UUID:
        """Return a UUID (version 4)."""
        refuse_inside_run("DeterministicHelpers.uuid")
        return self._ctx.uuid()

    def rand_int(self, minimum: int, maximum: int) -> int:
        """Return an integer from ``minimum`` up to, not including, ``maximum``; ``minimum`` when nothing is between."""
        if minimum >= maximum:
            return minimum
        return self._random("DeterministicHelpers.rand_int").randrange(minimum, maximum)

    def rand_float(self) -> float:
        """Return a number from 0.0 up to but not including 1.0."""
        return self._random("DeterministicHelpers.rand_float").random()

    def rand_choice(self, items: Sequence[T]) -> T:
        """Return one of the items.

        Raises:
            InvalidInput: There is none.
        """
        if not items:
            raise InvalidInput("cannot choose from an empty sequence")
        return self._random("DeterministicHelpers.rand_choice").choice(items)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Time:
    """The wall clock, captured in the journal: each reading is a run, and a replay sees the same one.

    Args:
        ctx: The handler's context.
    """

    def __init__(self, ctx: restate.Context) -> None:
        self._ctx = ctx

    async def now(self) -> datetime:
        """Return the current time in UTC, as the first execution saw it."""
        return await run_with_retry(self._ctx, "capture-time", _utc_now)

    async def since(self, moment: datetime) -> timedelta:
        """Return how long ago a moment was; negative for one in the future.

        Args:
            moment: The moment, with a time zone.

        Raises:
            InvalidInput: It has no time zone, so nobody can tell when it was.
        """
        return -await self.until(moment)

    async def until(self, moment: datetime) -> timedelta:
        """Return how long it is to a moment; negative for one in the past.

        Args:
            moment: The moment, with a time zone.

        Raises:
            InvalidInput: It has no time zone, so nobody can tell when it is.
        """
        if moment.utcoffset() is None:
            raise InvalidInput(f"{moment.isoformat()} has no time zone; give it one, for example UTC")
        return moment - await self.now()
