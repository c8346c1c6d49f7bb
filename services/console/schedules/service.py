"""Queries for schedules, and actions on them."""

from __future__ import annotations

from typing import Final

from perdure.schedules.messages import (
    INDEX_KEY,
    ScheduleAction,
    ScheduleActionRequest,
    ScheduleListRequest,
    action_target,
    list_target,
    status_target,
)
from perdure.schedules.signatures import sign_action
from services.console.auth.sessions import Session
from services.console.auth.users import utc_now
from services.console.dependencies import Components
from services.console.engine import EngineClient
from services.console.problems import ConsoleError
from services.console.schedules.schemas import ActionName, Schedule, SchedulePage

PAGE_SIZE: Final = 50


async def list_page(engine: EngineClient, number: int = 1) -> SchedulePage:
    """Return a page of schedules, by name."""
    found = await engine.call(list_target, ScheduleListRequest(page=number, page_size=PAGE_SIZE), key=INDEX_KEY)
    return SchedulePage(
        items=[Schedule.of(status) for status in found.items],
        unreadable=found.unreadable,
        total=found.total,
        page=found.page,
        pages=found.pages,
    )


async def get(engine: EngineClient, name: str) -> Schedule:
    """Return a schedule."""
    return Schedule.of(await engine.call(status_target, key=name))


async def act(
    components: Components, session: Session, name: str, action: ActionName, *, reason: str, digest: str | None
) -> Schedule:
    """Pause, resume, trigger or remove a schedule, signed for the session's user.

    Raises:
        ConsoleError: The schedule differs from the digest, or the service rejects the action.
    """
    engine, command = components.engine, ScheduleAction(action)
    schedule = await get(engine, name)
    if digest and digest != schedule.digest:
        raise ConsoleError(409, "changed", f"schedule '{name}' has changed; check it, then repeat the action")
    signature = sign_action(components.signer.key(session), command, schedule, reason=reason, at=utc_now())
    request = ScheduleActionRequest(actor=session.user.name, reason=reason, signed_action=signature)
    return Schedule.of(await engine.call(action_target(command), request, key=name))
