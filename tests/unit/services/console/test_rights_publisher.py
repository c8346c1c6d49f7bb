"""Publication of users' rights to the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from perdure.approvals.messages import PrincipalStatement
from perdure.approvals.principals import NO_PAYLOAD_DIGEST, principal_target
from perdure.approvals.schema import Principal
from perdure.security import Role, TrustedKeys
from services.console.auth.passwords import Passwords
from services.console.auth.users import Users
from services.console.engine import EngineClient
from services.console.problems import ConsoleError
from services.console.rights_publisher import RightsPublisher
from tests.unit.services.console.conftest import CHEAP, PASSWORD

ADA, BOB = "ada@example.com", "bob@example.com"


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> EngineClient:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return EngineClient("http://ingress.test", "http://admin.test", http)


def user_of(request: httpx.Request) -> str:
    return request.url.path.split("/")[4]


async def unpublished(console) -> dict[str, Any]:
    return {each.user_name: each for each in await console.components.users.unpublished_rights()}


async def test_change_records_revocation(console):
    users = console.components.users
    await console.add(ADA, Role.ADMINISTRATOR, Role.APPROVER)
    added = (await unpublished(console))[ADA]
    assert (added.roles, added.active, added.revoked_before) == ([Role.ADMINISTRATOR, Role.APPROVER], True, None)
    before = added.changed_at
    changes = [{"groups": ["finance"]}, {"roles": [Role.ADMINISTRATOR]}, {"roles": [Role.ADMINISTRATOR, Role.APPROVER]}]
    for change in changes:  # at the same time
        await users.change(ADA, **change, by="a test")
        changed = (await unpublished(console))[ADA]
        assert changed.changed_at > before
        assert changed.revoked_before == changed.changed_at
        before = changed.changed_at
    await users.revoke_links(ADA, by="a test")
    assert (await unpublished(console))[ADA].revoked_before > before
    before = (await unpublished(console))[ADA]
    with pytest.raises(ConsoleError, match="no active administrator would remain"):
        await users.change(ADA, disabled=True, by="a test")
    assert (await unpublished(console))[ADA] == before, "rolled back with the change"
    await users.set_password(ADA, "another long password", by="a test")
    assert (await unpublished(console))[ADA] == before


async def test_statement_is_signed_and_published_once(console):
    await console.add(ADA, Role.APPROVER)
    await console.add(BOB, Role.VIEWER)
    got: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        got.append(request)
        return httpx.Response(200, json={})

    publisher = RightsPublisher(console.components.users, answering(answer), console.components.signer)
    await publisher.publish()
    assert [request.url.path for request in got] == [f"/restate/call/Principals/{user}/put" for user in (ADA, BOB)]
    statement = PrincipalStatement.model_validate(json.loads(got[0].content))
    assert (statement.roles, statement.active, statement.reason) == ([Role.APPROVER], True, "changed by a test")
    assert statement.signed_action is not None
    found = TrustedKeys(issuers=(console.components.signer.issuer,)).verify(
        statement.signed_action,
        action="put",
        target=principal_target(ADA),
        payload_digest=NO_PAYLOAD_DIGEST,
        now=console.clock(),
        actor=statement.actor,
        reason=statement.reason,
        details=Principal.stated_by(statement).model_dump(mode="json"),
        role=Role.ADMINISTRATOR,
    )
    assert found.actor == "perdure console"
    await publisher.publish()
    assert (len(got), await unpublished(console)) == (2, {})


async def test_rejected_statement_blocks_no_other(console):
    await console.add(ADA, Role.APPROVER)
    await console.add(BOB, Role.VIEWER)

    def reject_ada(request: httpx.Request) -> httpx.Response:
        if user_of(request) == ADA:
            return httpx.Response(403, json={"message": "no"}, headers={"x-restate-id": "inv_1"})
        return httpx.Response(200, json={})

    with pytest.raises(ConsoleError):
        await RightsPublisher(console.components.users, answering(reject_ada), console.components.signer).publish()
    assert (await unpublished(console)).keys() == {ADA}


async def test_unreachable_engine_loses_nothing(console):
    await console.add(ADA, Role.APPROVER)
    with pytest.raises(ConsoleError):
        await RightsPublisher(console.components.users, console.components.engine, console.components.signer).publish()
    assert (await unpublished(console)).keys() == {ADA}


async def test_change_during_publication_is_published_next(console):
    await console.add(ADA, Role.APPROVER)
    statement = (await unpublished(console))[ADA]
    await console.components.users.change(ADA, disabled=False, roles=[Role.ADMINISTRATOR], by="a test")
    await console.components.users.mark_published(statement)
    assert (await unpublished(console))[ADA].roles == [Role.ADMINISTRATOR]


async def test_change_wakes_the_publisher(console):
    users = Users(console.components.database, Passwords(CHEAP))  # separate from the running publisher
    await users.add(ADA, PASSWORD, [Role.APPROVER], by="a test")
    await users.wait_for_change(timedelta(minutes=5))  # longer than the test's timeout
