"""What matters at a glance."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import TypeVar

from pydantic import BaseModel

from perdure.saga.messages import DeadLetter, DeadLetterListRequest
from services.console.engine import Engine
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError
from services.console.reads import approvals, dead_letters, invocations, sagas, services
from services.console.reads.approvals import InboxItem

T = TypeVar("T")

_SHOWN = 5


class Overview(BaseModel):
    """The platform at a glance. What could not be found out is None, and said in ``problems``.

    Args:
        open_approvals: Approvals that wait for anybody.
        my_approvals: Those among them that wait for who asks.
        dead_letters: Steps that could not be undone.
        oldest_dead_letter: Since when the oldest one waits.
        waiting: The most urgent approvals that wait for who asks.
        letters: The oldest dead letters.
        sagas: Sagas by phase.
        paused: Invocations that are paused.
        backing_off: Invocations that fail and are tried again.
        oldest_stuck: How long the oldest of those has been under way.
        deployments: How many deployments are registered.
        healthy: How many of them answer.
        problems: What could not be found out, and why.
    """

    open_approvals: int | None = None
    my_approvals: int | None = None
    dead_letters: int | None = None
    oldest_dead_letter: datetime | None = None
    waiting: list[InboxItem] = []
    letters: list[DeadLetter] = []
    sagas: dict[str, int] | None = None
    paused: int | None = None
    backing_off: int | None = None
    oldest_stuck: timedelta | None = None
    deployments: int | None = None
    healthy: int | None = None
    problems: list[str] = []


async def read(engine: Engine, signed_in: SignedIn, now: datetime) -> Overview:
    """Return the platform at a glance; what does not answer is left out and said.

    Args:
        engine: The engine.
        signed_in: Who asks.
        now: The time.
    """
    found = Overview()
    waiting, mine, letters, phases, stuck, known = await asyncio.gather(
        _tried(approvals.count_open(engine), found),
        _tried(approvals.inbox(engine, signed_in), found),
        _tried(dead_letters.page(engine, DeadLetterListRequest(page_size=_SHOWN)), found),
        _tried(sagas.count_by_phase(engine), found),
        _tried(invocations.stuck(engine), found),
        _tried(services.deployments(engine), found),
    )
    found.open_approvals = waiting
    if mine is not None:
        found.my_approvals, found.waiting = mine.total, mine.items[:_SHOWN]
    if letters is not None:
        found.dead_letters, found.letters = letters.total, letters.items
        found.oldest_dead_letter = letters.items[0].since if letters.items else None
    found.sagas = phases
    if stuck is not None:
        found.paused = sum(each.status == "paused" for each in stuck)
        found.backing_off = len(stuck) - found.paused
        ages = [int((now - each.created_at).total_seconds()) for each in stuck]
        # Whole seconds: RFC 3339's grammar of durations, which OpenAPI means, has no fractions.
        found.oldest_stuck = timedelta(seconds=max(ages)) if ages else None
    if known is not None:
        found.deployments = len(known)
        found.healthy = sum(each.healthy for each in known)
    return found


async def _tried(answer: Awaitable[T], found: Overview) -> T | None:
    try:
        return await answer
    except ConsoleError as error:
        if error.message not in found.problems:
            found.problems.append(error.message)
        return None
