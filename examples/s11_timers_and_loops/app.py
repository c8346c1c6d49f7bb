"""Reminders and scheduled work."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import restate
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    Orchestration,
    WorkflowLoop,
    WorkflowTimer,
    get_internal_signal,
    run_with_retry,
)
from perdure.errors import Refused


class Invitation(BaseModel):
    """An invitation with reminders.

    Args:
        email: The address.
        every: Interval of reminders.
        at_most: Maximum number of reminders.
    """

    email: str
    every: timedelta = timedelta(days=1)
    at_most: int = 10_000


reminded: Counter[str] = Counter()
"""Number of reminders per address."""

invitations = ControlPlaneService("Invitations")


def remind(email: str) -> None:
    """Send a reminder. The mail server rejects the first one."""
    reminded[email] += 1
    if reminded[email] == 1:
        raise Refused("try again later", 503, "busy")


@invitations.main
async def invite(cp: Orchestration, invitation: Invitation) -> str:
    """Send reminders until an answer arrives."""
    timer = WorkflowTimer(cp.ctx)
    loop = WorkflowLoop(cp.ctx, invitation.at_most)
    answer = get_internal_signal(cp.ctx, "answer", str)

    async def nobody_answered() -> bool:
        return await answer.peek() is None

    async def remind_and_wait(iteration: int) -> None:
        async def send(_attempt: int) -> None:
            await run_with_retry(cp.ctx, f"remind-{iteration}", remind, invitation.email)

        await loop.retry(send, 3, timedelta(milliseconds=10))
        await timer.sleep(invitation.every)

    await loop.while_(nobody_answered, remind_and_wait)
    return await answer.result()


@invitations.handler(public=True)
async def answer(ctx: restate.WorkflowSharedContext, text: str) -> None:
    """Answer the invitation."""
    await get_internal_signal(ctx, "answer", str).resolve(text)


digests: Counter[str] = Counter()
"""Number of digests per list."""

newsletters = DataPlaneService("Newsletters")


@newsletters.handler()
async def send_digest(ctx: DataPlaneContext, list_name: str) -> None:
    """Send a digest. A schedule starts this handler, so it is not public."""

    def deliver() -> None:
        digests[list_name] += 1

    await ctx.run("deliver", deliver)
