"""Schedules: what starts by itself, and what operators do with it."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import BaseModel

from perdure.schedules.messages import (
    INDEX_KEY,
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleListRequest,
    ScheduleStatus,
    action_target,
    list_target,
    status_target,
)
from perdure.schedules.signatures import schedule_digest, sign_action
from services.console.engine import Engine
from services.console.people.persons import utc_now
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError
from services.console.signing import Signer

PAGE_SIZE: Final = 50
ScheduleSteer = Literal["pause", "resume", "trigger", "remove"]


class Schedule(ScheduleStatus):
    """A schedule, as it is shown.

    Args:
        shown: The digest of what it does and when. Who acts says it, so that nobody acts on what they have not seen.
    """

    shown: str

    @classmethod
    def of(cls, status: ScheduleStatus) -> Self:
        """Return a schedule with the digest of what is shown.

        Args:
            status: How it stands.
        """
        return cls(**dict(status), shown=schedule_digest(status.spec, status.generation))


class Schedules(BaseModel):
    """Schedules, in the order of their names.

    Args:
        items: Those of this page.
        total: How many there are.
        page: Which page this is.
        pages: How many pages there are.
    """

    items: list[Schedule]
    total: int
    page: int
    pages: int


async def page(engine: Engine, number: int = 1) -> Schedules:
    """Return a page of schedules, by name.

    Args:
        engine: The engine.
        number: 1 for the first page.

    Raises:
        ConsoleError: Schedules are not deployed, or nobody answers.
    """
    found = await engine.call(list_target, ScheduleListRequest(page=number, page_size=PAGE_SIZE), key=INDEX_KEY)
    return Schedules(
        items=[Schedule.of(each) for each in found.items], total=found.total, page=found.page, pages=found.pages
    )


async def one(engine: Engine, name: str) -> Schedule:
    """Return a schedule.

    Args:
        engine: The engine.
        name: Its name.

    Raises:
        ConsoleError: There is none, or nobody answers.
    """
    return Schedule.of(await engine.call(status_target, key=name))


async def steer(
    engine: Engine,
    signer: Signer,
    signed_in: SignedIn,
    name: str,
    what: ScheduleSteer,
    *,
    reason: str,
    shown: str | None = None,
) -> Schedule:
    """Pause or resume a schedule, start a run of it now, or remove it, signed for who is signed in.

    Args:
        engine: The engine.
        signer: Signs.
        signed_in: Who does it.
        name: The schedule.
        what: What to do.
        reason: Why.
        shown: The digest of what they were shown, so that it is that, and nothing else, which they sign; None for how
            it is now.

    Raises:
        ConsoleError: It has changed since it was shown, it was refused, or nobody answers.
    """
    act, found = ScheduleAction(what), await one(engine, name)
    if shown is not None and shown != found.shown:
        raise ConsoleError(409, "changed", f"'{name}' has changed since you looked: look again, then decide")
    signed_action = sign_action(signer.key(signed_in), act, found, reason=reason, at=utc_now())
    request = ScheduleActionRequest(actor=signed_in.person.name, reason=reason, signed_action=signed_action)
    return Schedule.of(await engine.call(action_target(act), request, key=name))
