"""What the engine is told of people's rights: recorded with each change, and sent until the engine has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from services.console.people.database import Database
from services.console.people.passwords import Passwords
from services.console.people.persons import Users
from services.console.people.tables import RightsRow, SchemaRow
from services.console.rights import RightsSender
from sqlalchemy import delete, text, update

from perdure.approvals.messages import PrincipalStatement
from perdure.approvals.principals import NOTHING_SHOWN, principal_target
from perdure.security import Role, TrustedKeys
from services.console.engine import Engine
from services.console.problems import ConsoleError
from tests.unit.services.console.conftest import CHEAP, PASSWORD

ADA, BOB = "ada@example.com", "bob@example.com"


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> Engine:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Engine("http://ingress.test", "http://admin.test", http)


def person_of(request: httpx.Request) -> str:
    return request.url.path.split("/")[2]


async def unsent(desk) -> dict[str, Any]:
    return {each.person: each for each in await desk.parts.persons.unsent_rights()}


async def test_change_records_revocation(desk):
    persons = desk.parts.persons
    await desk.add(ADA, Role.ADMINISTRATOR, Role.APPROVER)
    added = (await unsent(desk))[ADA]
    assert (added.roles, added.active, added.revoked_before) == ([Role.ADMINISTRATOR, Role.APPROVER], True, None)
    before = added.changed_at
    changes = [{"groups": ["finance"]}, {"roles": [Role.ADMINISTRATOR]}, {"roles": [Role.ADMINISTRATOR, Role.APPROVER]}]
    for change in changes:  # the clock stands still
        await persons.change(ADA, **change, by="a test")
        changed = (await unsent(desk))[ADA]
        assert changed.changed_at > before
        assert changed.revoked_before == changed.changed_at
        before = changed.changed_at
    await persons.revoke_links(ADA, by="a test")
    assert (await unsent(desk))[ADA].revoked_before > before
    before = (await unsent(desk))[ADA]
    with pytest.raises(ConsoleError, match="nobody would be left"):
        await persons.change(ADA, disabled=True, by="a test")
    assert (await unsent(desk))[ADA] == before, "recorded with the change, or not at all"
    await persons.set_password(ADA, "another long password", by="a test")
    assert (await unsent(desk))[ADA] == before


async def test_statement_is_signed_and_sent_once(desk):
    await desk.add(ADA, Role.APPROVER)
    await desk.add(BOB, Role.VIEWER)
    got: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        got.append(request)
        return httpx.Response(200, json={})

    sender = RightsSender(desk.parts.persons, answering(answer), desk.parts.signer)
    await sender.send()
    assert [request.url.path for request in got] == [f"/Principals/{person}/put" for person in (ADA, BOB)]
    statement = PrincipalStatement.model_validate(json.loads(got[0].content))
    assert (statement.roles, statement.active, statement.reason) == ([Role.APPROVER], True, "changed by a test")
    assert statement.proof is not None
    found = TrustedKeys(issuers=(desk.parts.signer.issuer,)).verify(
        statement.proof,
        act="put",
        target=principal_target(ADA),
        payload_digest=NOTHING_SHOWN,
        now=desk.clock(),
        actor=statement.actor,
        reason=statement.reason,
        details=statement.principal.model_dump(mode="json"),
        role=Role.ADMINISTRATOR,
    )
    assert found.actor == "perdure console"
    await sender.send()
    assert (len(got), await unsent(desk)) == (2, {})


async def test_refused_statement_keeps_no_other_back(desk):
    await desk.add(ADA, Role.APPROVER)
    await desk.add(BOB, Role.VIEWER)

    def refuse_ada(request: httpx.Request) -> httpx.Response:
        if person_of(request) == ADA:
            return httpx.Response(403, json={"message": "no"}, headers={"x-restate-id": "inv_1"})
        return httpx.Response(200, json={})

    with pytest.raises(ConsoleError):
        await RightsSender(desk.parts.persons, answering(refuse_ada), desk.parts.signer).send()
    assert (await unsent(desk)).keys() == {ADA}


async def test_unreachable_engine_loses_nothing(desk):
    await desk.add(ADA, Role.APPROVER)
    with pytest.raises(ConsoleError):  # no engine listens there
        await RightsSender(desk.parts.persons, desk.parts.engine, desk.parts.signer).send()
    assert (await unsent(desk)).keys() == {ADA}


async def test_change_while_sending_is_sent_next(desk):
    await desk.add(ADA, Role.APPROVER)
    stated = (await unsent(desk))[ADA]
    await desk.parts.persons.change(ADA, disabled=False, roles=[Role.ADMINISTRATOR], by="a test")
    await desk.parts.persons.rights_sent(stated)
    assert (await unsent(desk))[ADA].roles == [Role.ADMINISTRATOR]


async def test_change_wakes_the_sender(desk):
    persons = Users(desk.parts.database, Passwords(CHEAP))  # of its own: the console's sender takes what it is told
    await persons.add(ADA, PASSWORD, [Role.APPROVER], by="a test")
    await persons.rights_changed(within=timedelta(minutes=5))  # at once: else the test's own limit ends it


async def test_upgrade_states_everybody(desk):
    await desk.add(ADA, Role.APPROVER)
    database: Database = desk.parts.database
    async with database.transaction() as connection:
        await connection.execute(text("DROP TABLE rights"))
        await connection.execute(update(SchemaRow).values(version=3))
    await database.prepare()
    (stated,) = await desk.parts.persons.unsent_rights()
    assert (stated.person, stated.roles, stated.revoked_before) == (ADA, [Role.APPROVER], None)
    async with database.transaction() as connection:
        await connection.execute(delete(RightsRow))
