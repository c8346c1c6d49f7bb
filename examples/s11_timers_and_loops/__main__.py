"""Somebody who reacts to a reminder, somebody who never does; a digest every 50 ms, and one every night at two."""

from __future__ import annotations

import sys
from datetime import timedelta
from zoneinfo import ZoneInfo

from examples._stage import Example, Stage
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
from perdure.schedules import definitions as schedules


async def play(stage: Stage) -> None:
    """Play the example."""
    await _remind(stage)
    await _schedule(stage)


async def _remind(stage: Stage) -> None:
    ada = Invitation(email=stage.key("ada"), every=timedelta(milliseconds=30))
    await stage.ingress.send(invite, ada, key=ada.email)

    async def reminded_three_times() -> bool | None:
        return reminded[ada.email] > 3 or None

    await stage.until(reminded_three_times)
    await stage.ingress.call(answer, "I'm coming", key=ada.email)
    stage.say(f"ada, after some reminders: {await stage.ingress.attach(invite, key=ada.email)}")

    bob = Invitation(email=stage.key("bob"), every=timedelta(milliseconds=1), at_most=3)
    error = await stage.refusal(stage.ingress.call(invite, bob, key=bob.email))
    stage.say(f"bob: {error.status_code} {error.message}")


async def _schedule(stage: Stage) -> None:
    client = ScheduleClient(stage.ingress, actor="olga")
    often, nightly = stage.key("often"), stage.key("nightly")
    await client.set(often, every=timedelta(milliseconds=50), target=send_digest, request=often)

    async def sent_three_times() -> bool | None:
        return digests[often] >= 3 or None

    await stage.until(sent_three_times)
    paused = await client.pause(often, reason="enough for now")
    stage.say(f"{often}: sent three times and more, now {paused.state} by {paused.audit_log[0].actor}")

    vienna = ZoneInfo("Europe/Vienna")
    await client.set(nightly, cron="0 2 * * *", timezone=vienna.key, target=send_digest, request=nightly)
    status = await client.status(nightly)
    if status.next_at is not None:
        stage.say(f"{nightly}: {status.state}, next at {status.next_at.astimezone(vienna):%H:%M} in Vienna")
    for name in (often, nightly):
        await client.remove(name)


example = Example("examples.s11_timers_and_loops", play, (invitations, newsletters, *schedules()))

if __name__ == "__main__":
    sys.exit(example.main())
