"""Attacks on an encrypted journal: unsealed values, and sealed values copied to another place."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from nacl.secret import SecretBox
from nacl.utils import random

from perdure._runtime.places import Place
from perdure.engine.admin import AdminClient, sql_text
from perdure.security import JournalCodec
from services.runtime.booking import ORDINARY, new_trip_id
from tests.support import eventually
from tests.system.attacks.attack import Attack, Run, at_ingress, status_of
from tests.system.attacks.platform import DefendedPlatform

_ORDER: Final = ORDINARY.model_dump(mode="json")
_SEALED: Final = b"pd2"
_WITHIN: Final = 60.0


async def _post(at: DefendedPlatform, path: str, body: bytes) -> str:
    headers = {"content-type": "application/json"} if body else {}
    return status_of(await at.http.post(at.topology.ingress_url + path, content=body, headers=headers))


def _empty(path: Callable[[DefendedPlatform], str]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        return await _post(at, path(at), b"")

    return run


async def _input_of(at: DefendedPlatform, service: str, key: str, handler: str) -> bytes:
    """Return the sealed input of an invocation: the end of its first journal entry."""
    async with AdminClient(at.topology.admin_url) as admin:
        rows = await admin.query(
            "select j.raw from sys_journal j join sys_invocation i on j.id = i.id "
            f"where i.target_service_name = {sql_text(service)} and i.target_service_key = {sql_text(key)} "
            f"and i.target_handler_name = {sql_text(handler)} and j.index = 0"
        )
    raw = bytes.fromhex(rows[0]["raw"])
    return raw[raw.index(_SEALED) :]


async def _state_of(at: DefendedPlatform, service: str, key: str) -> dict[str, bytes]:
    async with AdminClient(at.topology.admin_url) as admin:
        rows = await admin.query(
            f"select key, value from state where service_name = {sql_text(service)} and service_key = {sql_text(key)}"
        )
    return {row["key"]: bytes.fromhex(row["value"]) for row in rows}


async def _copied_order(at: DefendedPlatform) -> str:
    """Book with the sealed order of an approved trip under another ID."""
    return await _post(at, f"/Trips/{new_trip_id()}/run", await _input_of(at, "Trips", at.linked, "run"))


async def _copied_decision(at: DefendedPlatform) -> str:
    """Decide the open approval with the sealed decision of another one."""
    decision = await _input_of(at, "Approvals", at.linked, "decide_by_link")
    return await _post(at, f"/Approvals/{at.waiting}/decide_by_link", decision)


async def _decision_for_another_handler(at: DefendedPlatform) -> str:
    """Send the sealed decision of a link to the handler that approves without one."""
    decision = await _input_of(at, "Approvals", at.linked, "decide_by_link")
    return await _post(at, f"/Approvals/{at.linked}/approve", decision)


async def _copied_state_as_input(at: DefendedPlatform) -> str:
    state = await _state_of(at, "Approvals", at.linked)
    return await _post(at, f"/Approvals/{at.waiting}/approve", state["approval"])


async def _output_as_input(at: DefendedPlatform) -> str:
    asked = at.seal(b"", Place.input("Approvals", at.linked, "status"))
    url = f"{at.topology.ingress_url}/Approvals/{at.linked}/status"
    answer = await at.http.post(url, content=asked, headers={"content-type": "application/json"})
    return await _post(at, f"/Approvals/{at.waiting}/approve", answer.content)


async def _copied_state(at: DefendedPlatform) -> str:
    """Replace the open approval's state by that of an approved one, then read it."""
    genuine, approved = await _state_of(at, "Approvals", at.waiting), await _state_of(at, "Approvals", at.linked)
    await _put_state(at, {**genuine, "approval": approved["approval"]})
    asked = at.seal(b"", Place.input("Approvals", at.waiting, "status"))
    url = f"{at.topology.ingress_url}/Approvals/{at.waiting}/status/send"
    sent = await at.http.post(url, content=asked, headers={"content-type": "application/json"})
    invocation = sent.json()["invocationId"]
    try:
        return await _answer_of(at, invocation)
    finally:
        await _put_state(at, genuine)


async def _end_unreadable(at: DefendedPlatform) -> None:
    """Kill invocations that retry because of the copied state, such as a reminder; they would block its replacement."""
    async with AdminClient(at.topology.admin_url) as admin:
        rows = await admin.query(
            "select id from sys_invocation where target_service_name = 'Approvals' and status != 'completed' "
            f"and target_service_key = {sql_text(at.waiting)} and last_failure like '%sealed for another place%'"
        )
        for row in rows:
            await admin.control_invocation(row["id"], "kill")


async def _put_state(at: DefendedPlatform, state: dict[str, bytes]) -> None:
    body = {"object_key": at.waiting, "new_state": {name: list(value) for name, value in state.items()}}
    (await at.http.post(f"{at.topology.admin_url}/services/Approvals/state", json=body)).raise_for_status()

    async def stored() -> bool:
        await _end_unreadable(at)
        return await _state_of(at, "Approvals", at.waiting) == state

    await eventually(stored, what="stored state", within=_WITHIN)


async def _answer_of(at: DefendedPlatform, invocation: str) -> str:
    """Return an invocation's result, or ``refused`` if it retries because a value does not open."""
    async with AdminClient(at.topology.admin_url) as admin:

        async def result() -> str | None:
            (row,) = await admin.query(
                f"select status, completion_result, last_failure from sys_invocation where id = {sql_text(invocation)}"
            )
            if row["status"] == "completed":
                return str(row["completion_result"])
            if "sealed for another place" in str(row.get("last_failure")):
                await admin.control_invocation(invocation, "kill")
                return "refused"
            return None

        return await eventually(result, what=f"result of {invocation}", within=_WITHIN)


def _sealed_otherwise(seal: Callable[[DefendedPlatform, bytes, Place], bytes]) -> Run:
    async def run(at: DefendedPlatform) -> str:
        trip_id = new_trip_id()
        body = seal(at, json.dumps(_ORDER).encode(), Place.input("Trips", trip_id, "run"))
        return await _post(at, f"/Trips/{trip_id}/run", body)

    return run


def _of_another_platform(at: DefendedPlatform, body: bytes, place: Place) -> bytes:
    return JournalCodec.load(at.topology.keys_dir / "journal.keys", platform="another").seal(body, place)


def _under_an_own_key(_at: DefendedPlatform, body: bytes, place: Place) -> bytes:
    return JournalCodec([random(SecretBox.KEY_SIZE)]).seal(body, place)


def _changed(at: DefendedPlatform, body: bytes, place: Place) -> bytes:
    sealed = at.seal(body, place)
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


def _of_the_old_format(at: DefendedPlatform, body: bytes, place: Place) -> bytes:
    return at.seal(body, place).replace(_SEALED, b"pd1", 1)


def _attack(
    name: str, run: Callable[[DefendedPlatform], Awaitable[Any]], expected: str = "400 rejected_value"
) -> Attack:
    return Attack("encryption", name, expected, run, needs_encryption=True)


SEALED: Final = (
    _attack("an unsealed order", at_ingress(f"/Trips/{new_trip_id()}/run", _ORDER, sealed=False)),
    _attack("an empty body for a handler without input", _empty(lambda at: f"/Trips/{at.waiting}/status"), "400"),
    _attack("an empty body for a handler with input", _empty(lambda at: f"/Approvals/{at.waiting}/approve")),
    _attack("another trip's sealed order", _copied_order),
    _attack("another approval's sealed decision", _copied_decision),
    _attack("a sealed decision, for another handler", _decision_for_another_handler),
    _attack("an approval's sealed state as a decision", _copied_state_as_input),
    _attack("a sealed answer as a decision", _output_as_input),
    _attack("an approved approval's sealed state for an open one", _copied_state, "refused"),
    _attack("an order sealed for another platform", _sealed_otherwise(_of_another_platform)),
    _attack("an order sealed under the attacker's own key", _sealed_otherwise(_under_an_own_key)),
    _attack("a sealed order with one bit changed", _sealed_otherwise(_changed)),
    _attack("an order in the format without places", _sealed_otherwise(_of_the_old_format)),
)
