"""Attacks with text: escape sequences, direction overrides and line breaks in displayed values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

from services.runtime.booking import ORDINARY
from tests.system.attacks.attack import Attack, Run, at_ingress, status_of
from tests.system.attacks.platform import GRACE, OLGA, DefendedPlatform

ESCAPE: Final = "\x1b[2J\x1b[31mowned"
OVERRIDE: Final = "\u202egnp.exe"
FORGED: Final = "ok\n2026-11-30 [info] all signatures hold"


def _approval(handler: str, **changes: Any) -> Run:
    async def run(at: DefendedPlatform) -> str:
        body = {"actor": GRACE, "reason": "", **changes}
        return await at_ingress(f"/Approvals/{at.waiting}/{handler}", body)(at)

    return run


def _letter(**changes: Any) -> Run:
    async def run(at: DefendedPlatform) -> str:
        body = {"id": at.letter.id, "actor": OLGA, "reason": "", **changes}
        return await at_ingress("/DeadLetters/annotate", body)(at)

    return run


def _trip(change: Callable[[dict[str, Any]], None]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        trip = ORDINARY.model_dump(mode="json")
        change(trip)
        return status_of(
            await at.http.post(
                f"{at.topology.console_url}/gateway/Trips/trip-{uuid4().hex[:12]}/run",
                content=json.dumps(trip).encode(),
                headers={"content-type": "application/json", "authorization": f"Bearer {at.api_key}"},
            )
        )

    return run


def _at_console(path: Callable[[DefendedPlatform], str], by: str, body: dict[str, Any]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        headers = {"authorization": f"Bearer {at.sessions[by]}"}
        return status_of(await at.http.post(at.topology.console_url + path(at), headers=headers, json=body))

    return run


def _set(place: str, name: str, value: str) -> Callable[[dict[str, Any]], None]:
    def change(trip: dict[str, Any]) -> None:
        trip[place][name] = value

    return change


def _traveller(value: str) -> Callable[[dict[str, Any]], None]:
    def change(trip: dict[str, Any]) -> None:
        trip["traveller"] = value

    return change


TEXT: Final = (
    Attack("text", "an escape sequence in the approver", "400", _approval("approve", actor=f"{GRACE}{ESCAPE}")),
    Attack("text", "an override in the approver", "400", _approval("approve", actor=f"{GRACE}{OVERRIDE}")),
    Attack("text", "a zero-width space in the approver", "400", _approval("approve", actor=f"gr\u200bace{GRACE[5:]}")),
    Attack("text", "an escape sequence as a reason", "400", _approval("reject", reason=ESCAPE)),
    Attack("text", "a forged line as a reason", "400", _approval("reject", reason=FORGED)),
    Attack("text", "an override as a group", "400", _approval("approve", groups=[OVERRIDE])),
    Attack(
        "text",
        "an escape sequence as a deputy",
        "400",
        _approval("delegate", to=ESCAPE, until="2099-01-01T00:00:00Z"),
    ),
    Attack("text", "an escape sequence as a dead letter's reason", "400", _letter(reason=ESCAPE)),
    Attack("text", "an override in the operator of a dead letter", "400", _letter(actor=f"{OLGA}{OVERRIDE}")),
    Attack("text", "an escape sequence as a traveller", "400", _trip(_traveller(f"{ESCAPE}@example.com"))),
    Attack("text", "an override as a traveller", "400", _trip(_traveller(f"ada{OVERRIDE}@example.com"))),
    Attack("text", "an override as a hotel", "400", _trip(_set("hotel", "name", OVERRIDE))),
    Attack("text", "a C1 control character as a flight", "400", _trip(_set("flight", "number", "PD100\x9b2J"))),
    Attack(
        "text",
        "an escape sequence as a reason at the console",
        "400",
        _at_console(lambda at: f"/api/approvals/{at.waiting}/reject", GRACE, {"reason": ESCAPE}),
    ),
    Attack(
        "text",
        "an override as a reason at the console",
        "400",
        _at_console(lambda at: f"/api/dead-letters/{at.letter.id}/annotate", OLGA, {"reason": OVERRIDE}),
    ),
)
