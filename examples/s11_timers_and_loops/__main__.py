"""Invite with and without an answer; schedule a digest every 50 ms and one at night."""

from __future__ import annotations

import sys
from datetime import timedelta
from zoneinfo import ZoneInfo

from examples._session import Example, Session
from examples.s11_timers_and_loops.app import (
    Invitation,
    answer,
    digests,
    invitations,
    invite,
    newsletters,
    reminded,
    send_digest,
)
from perdure.schedules import ScheduleClient


async def play(session: Session) -> None:
    """Run the example."""
    await _remind(session)
    await _schedule(session)


async def _remind(session: Session) -> None:
    ada = Invitation(email=session.key("ada"), every=timedelta(milliseconds=30))
    await session.ingress.send(invite, ada, key=ada.email)

    async def reminded_three_times() -> bool | None:
        return reminded[ada.email] > 3 or None

    await session.until(reminded_three_times)
    await session.ingress.call(answer, "I'm coming", key=ada.email)
    session.print(f"ada, after some reminders: {await session.ingress.attach(invite, key=ada.email)}")

    bob = Invitation(email=session.key("bob"), every=timedelta(milliseconds=1), at_most=3)
    error = await session.refusal(session.ingress.call(invite, bob, key=bob.email))
    session.print(f"bob: {error.status_code} {error.message}")


async def _schedule(session: Session) -> None:
    client = ScheduleClient(session.ingress, actor="olga")
    often, nightly = session.key("often"), session.key("nightly")
    await client.set(often, every=timedelta(milliseconds=50), target=send_digest, request=often)

    async def sent_three_times() -> bool | None:
        return digests[often] >= 3 or None

    await session.until(sent_three_times)
    paused = await client.pause(often, reason="enough for now")
    session.print(f"{often}: sent three times and more, now {paused.state} by {paused.audit_log[0].actor}")

    vienna = ZoneInfo("Europe/Vienna")
    await client.set(nightly, cron="0 2 * * *", timezone=vienna.key, target=send_digest, request=nightly)
    status = await client.status(nightly)
    if status.next_at is not None:
        session.print(f"{nightly}: {status.state}, next at {status.next_at.astimezone(vienna):%H:%M} in Vienna")
    for name in (often, nightly):
        await client.remove(name)


example = Example("examples.s11_timers_and_loops", play, (invitations, newsletters))

if __name__ == "__main__":
    sys.exit(example.main())
