"""Scenarios of trips whose hotel can't be cancelled, until it is repaired and an operator redrives."""

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
from tests.system.scenarios.harness import Fact, Stage, describe_holdings, describe_told
from tests.system.scenarios.orders import order

HOTEL: Final = "Fortress"
"""Its seed data says that it never cancels."""

Ending = Literal["declined", "cancelled", "killed"]

_letters: Target[DeadLetterListRequest, DeadLetterPage] = Target(
    "DeadLetters", "list", DeadLetterListRequest, DeadLetterPage
)
_redrive: Target[DeadLetterActionRequest, ActionReceipt] = Target(
    "DeadLetters", "redrive", DeadLetterActionRequest, ActionReceipt
)


def unrepairable(ending: Ending) -> Callable[[Stage], Awaitable[list[Fact]]]:
    """Book a trip at the hotel that never cancels, and let it fail.

    Args:
        ending: How it fails: its card is declined, it is cancelled, or its orchestration is killed in the engine.
    """

    async def play_it(stage: Stage) -> list[Fact]:
        trip_id = new_trip_id()
        if ending == "declined":
            answered = await stage.book(trip_id, order(hotel=HOTEL, account="acct-declined"))
            facts = [Fact("answer", "402 card_declined at payment, needs_attention", answered)]
        else:
            await stage.send(trip_id, order(hotel=HOTEL, amount_minor=250_000))
            await stage.until_step(trip_id, "approval")
            await stage.act_on_trip(trip_id, "cancel" if ending == "cancelled" else "kill")
            facts = []
        await stage.until_rollback(trip_id, RollbackState.NEEDS_ATTENTION)
        page = await stage.ingress.call(_letters, DeadLetterListRequest(saga_id=trip_id))
        trip = await stage.trip(trip_id)
        facts += [
            Fact("dead letters", "hotel", ", ".join(letter.step for letter in page.items)),
            Fact("holds until then", "seat sets: 0, rooms: 1, charges: 0", describe_holdings(trip)),
            Fact("told until then", "nothing", describe_told(trip)),
        ]
        async with stage.hotel_repaired(HOTEL):
            request = DeadLetterActionRequest(
                id=page.items[0].id, actor="olga@example.com", reason="the hotel is repaired"
            )
            await stage.ingress.call(_redrive, request)
            await stage.until_rollback(trip_id, RollbackState.ROLLED_BACK)
        await stage.until_quiet()
        trip = await stage.trip(trip_id)
        audit_log = (await stage.ingress.call(rollback_status, key=trip_id)).audit_log
        phase = "cancelled" if ending == "cancelled" else "rolled_back"
        return [
            *facts,
            Fact("status", phase, (await stage.status(trip_id)).phase),
            Fact("holds", "nothing", describe_holdings(trip)),
            Fact("told", "trip-refused", describe_told(trip)),
            Fact(
                "audit_log",
                "redrive by olga@example.com",
                ", ".join(f"{each.action} by {each.actor}" for each in audit_log),
            ),
        ]

    return play_it
