"""Attacks on waiting sagas: forged completions of awakeables."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, Literal

from perdure._runtime.invocation_ids import pending_id, signal_id
from perdure._runtime.places import Place
from perdure.approvals.targets import listen_to_approval
from perdure.engine.admin import sql_text
from services.contracts import trips
from services.runtime.connections import admin_client
from tests.support import eventually
from tests.system.attacks.attack import Attack, Run, status_of
from tests.system.attacks.platform import GRACE, DefendedPlatform
from tests.system.scenarios.orders import order

_FIRST: Final = 17
_HOW_MANY: Final = 8
_WITHIN: Final = 30.0


def _complete(how: Literal["resolve", "reject"], *, sealed: bool) -> Run:
    """Return an attack that completes the current and the next awakeables of the waiting trip.

    Their IDs follow from the invocation ID.
    """

    async def run(at: DefendedPlatform) -> str:
        # The response to a repeated order contains the invocation ID.
        invocation = await at.harness.ingress.send(trips.book, order(amount_minor=250_000), key=at.waiting)
        before = await _readings(at)
        body = json.dumps(_approved(at)).encode()
        for number in range(_FIRST, _FIRST + _HOW_MANY):
            id_ = signal_id(invocation, number)
            url = f"{at.topology.ingress_url}/restate/awakeables/{id_}/{how}"
            content = at.seal(body, Place.awakeable(id_)) if sealed else body
            (await at.http.post(url, content=content, headers={"content-type": "application/json"})).raise_for_status()

        async def woken() -> bool:
            return await _readings(at) > before

        await eventually(woken, what="wake-up of the waiting trip", within=_WITHIN)
        status = await at.harness.status(at.waiting)
        return "waits" if status.current_step == "approval" and not status.is_complete else f"is {status.phase}"

    return run


def _complete_other(make: Callable[[str], str], prefix: str = "/restate/awakeables") -> Run:
    """Return an attack that completes another result of the waiting trip through an awakeable path."""

    async def run(at: DefendedPlatform) -> str:
        invocation = await at.harness.ingress.send(trips.book, order(amount_minor=250_000), key=at.waiting)
        url = f"{at.topology.ingress_url}{prefix}/{make(invocation)}/resolve"
        return status_of(await at.http.post(url, content=b"{}", headers={"content-type": "application/json"}))

    return run


def _pending(invocation: str) -> str:
    return pending_id(invocation, 10_000)  # not in the journal, so an accepted completion changes nothing


def _approved(at: DefendedPlatform) -> dict[str, Any]:
    return {"approval_id": at.waiting, "outcome": "approved", "decided_by": [GRACE], "reason": "forged"}


async def _readings(at: DefendedPlatform) -> int:
    """Return how often the trip has read the outcome of its approval."""
    async with admin_client(at.topology.admin_url) as admin:
        rows = await admin.query(
            f"select id from sys_invocation_status where target_service_name = '{listen_to_approval.service}' "
            f"and target_handler_name = '{listen_to_approval.handler}' and status = 'completed' "
            f"and target_service_key = {sql_text(at.waiting)}"
        )
        return len(rows)


COMPLETIONS: Final = (
    Attack("completion", "an approval, sealed with the journal's keys", "waits", _complete("resolve", sealed=True)),
    Attack("completion", "an unsealed approval", "waits", _complete("resolve", sealed=False)),
    Attack("completion", "a rejected awakeable", "waits", _complete("reject", sealed=False)),
    *(
        Attack("completion", f"a forged result of a pending call at {prefix}", "403", _complete_other(_pending, prefix))
        for prefix in ("/restate/awakeables", "/restate/a", "/restate/%61wakeables")
    ),
    Attack("completion", "a cancel by signal", "403", _complete_other(lambda id_: signal_id(id_, 1))),
)
