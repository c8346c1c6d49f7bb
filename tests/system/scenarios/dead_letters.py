"""Scenarios in which the hotel's compensation fails until an operator redrives it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Literal

from perdure import Target
from perdure.saga.messages import (
    ActionReceipt,
    DeadLetterActionRequest,
    DeadLetterListRequest,
    DeadLetterPage,
    rollback_status,
)
from perdure.saga.status import RollbackState
from services.runtime.booking import new_trip_id
from tests.system.scenarios.harness import Fact, Harness, describe_holdings, describe_notifications
from tests.system.scenarios.orders import order

HOTEL: Final = "Fortress"
"""Hotel whose seed data makes every cancellation fail."""

Ending = Literal["declined", "cancelled", "killed"]

_letters: Target[DeadLetterListRequest, DeadLetterPage] = Target(
    "DeadLetters", "list", DeadLetterListRequest, DeadLetterPage
)
_redrive: Target[DeadLetterActionRequest, ActionReceipt] = Target(
    "DeadLetters", "redrive", DeadLetterActionRequest, ActionReceipt
)


def unrepairable(ending: Ending) -> Callable[[Harness], Awaitable[list[Fact]]]:
    """Book a trip whose hotel cannot be cancelled, and make the trip fail.

    Args:
        ending: Cause of the failure: the card is declined, the trip is cancelled, or its orchestration is killed.
    """

    async def play_it(harness: Harness) -> list[Fact]:
        trip_id = new_trip_id()
        if ending == "declined":
            answered = await harness.book(trip_id, order(hotel=HOTEL, account="acct-declined"))
            facts = [Fact("answer", "402 card_declined at payment, needs_attention", answered)]
        else:
            await harness.send(trip_id, order(hotel=HOTEL, amount_minor=250_000))
            await harness.until_step(trip_id, "approval")
            await harness.control_trip(trip_id, "cancel" if ending == "cancelled" else "kill")
            facts = []
        await harness.until_rollback(trip_id, RollbackState.NEEDS_ATTENTION)
        page = await harness.ingress.call(_letters, DeadLetterListRequest(saga_id=trip_id))
        trip = await harness.trip(trip_id)
        facts += [
            Fact("dead letters", "hotel", ", ".join(letter.step for letter in page.items)),
            Fact("holds before the redrive", "seat sets: 0, rooms: 1, charges: 0", describe_holdings(trip)),
            Fact("notified before the redrive", "nothing", describe_notifications(trip)),
        ]
        async with harness.hotel_repaired(HOTEL):
            request = DeadLetterActionRequest(
                id=page.items[0].id, actor="olga@example.com", reason="the hotel is repaired"
            )
            await harness.ingress.call(_redrive, request)
            await harness.until_rollback(trip_id, RollbackState.ROLLED_BACK)
        await harness.until_quiet()
        trip = await harness.trip(trip_id)
        audit_log = (await harness.ingress.call(rollback_status, key=trip_id)).audit_log
        phase = "cancelled" if ending == "cancelled" else "rolled_back"
        return [
            *facts,
            Fact("status", phase, (await harness.status(trip_id)).phase),
            Fact("holds", "nothing", describe_holdings(trip)),
            Fact("notified", "trip-refused", describe_notifications(trip)),
            Fact(
                "audit log",
                "redrive by olga@example.com",
                ", ".join(f"{each.action} by {each.actor}" for each in audit_log),
            ),
        ]

    return play_it
