"""Schedules: what starts by itself, and what operators do with it."""

from __future__ import annotations

from typing import Final, Literal

from perdure.workflow.schedule.messages import (
    INDEX_KEY,
    ScheduleAct,
    ScheduleActRequest,
    ScheduleListRequest,
    SchedulePage,
    ScheduleStatus,
    act_target,
    list_target,
    status_target,
)
from perdure.workflow.schedule.proofs import sign_act
from services.console.engine import Engine
from services.console.people.persons import utc_now
from services.console.people.sessions import SignedIn
from services.console.signing import Signer

PAGE_SIZE: Final = 50
ScheduleSteer = Literal["pause", "resume", "trigger", "remove"]


async def page(engine: Engine, number: int = 1) -> SchedulePage:
    """Return a page of schedules, by name.

    Args:
        engine: The engine.
        number: 1 for the first page.

    Raises:
        ConsoleError: Schedules are not deployed, or nobody answers.
    """
    return await engine.call(list_target, ScheduleListRequest(page=number, page_size=PAGE_SIZE), key=INDEX_KEY)


async def one(engine: Engine, name: str) -> ScheduleStatus:
    """Return a schedule.

    Args:
        engine: The engine.
        name: Its name.

    Raises:
        ConsoleError: There is none, or nobody answers.
    """
    return await engine.call(status_target, key=name)


async def steer(
    engine: Engine, signer: Signer, signed_in: SignedIn, name: str, what: ScheduleSteer, *, reason: str
) -> ScheduleStatus:
    """Pause or resume a schedule, start a run of it now, or remove it, signed for who is signed in.

    Args:
        engine: The engine.
        signer: Signs.
        signed_in: Who does it.
        name: The schedule.
        what: What to do.
        reason: Why.

    Raises:
        ConsoleError: It was refused, or nobody answers.
    """
    act = ScheduleAct(what)
    proof = sign_act(signer.key(signed_in), act, await one(engine, name), reason=reason, at=utc_now())
    request = ScheduleActRequest(actor=signed_in.person.name, reason=reason, proof=proof)
    return await engine.call(act_target(act), request, key=name)
