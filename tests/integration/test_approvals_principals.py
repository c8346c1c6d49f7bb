"""Rights that are withdrawn, on a real engine: links, delegations and credentials end with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from perdure import Target
from perdure.approvals.audit_log import check_approval
from perdure.approvals.links import LinkMinter
from perdure.approvals.principals import sign_principal_action
from perdure.approvals.schema import Principal
from perdure.approvals.service import ApprovalsConfig, definitions
from perdure.approvals.signatures import sign_action
from perdure.approvals.targets import principal_status
from perdure.security import ActorKey, Role, SigningMode, SigningRules, TrustedKeys
from perdure.testing import Restate
from tests.integration.approvals_harness import HOUR, asking, refused
from tests.integration.test_approvals_signatures import DIGEST, ISSUER, LINKS, PAYLOAD, SignedDesk, key_of, now, why

RULES = SigningRules(mode=SigningMode.SIGNED, trusted_keys=TrustedKeys(issuers=(ISSUER.public,)))
ADMIN = key_of("admin", roles=(Role.ADMINISTRATOR,))
MINTER = LinkMinter(LINKS, "https://console.example.com")


class RightsDesk(SignedDesk):
    """Client that changes rights; the names are a test's own, because rights outlive it."""

    def link(self, person: str, *, issued_at: datetime | None = None) -> str:
        at = issued_at or now()
        address = MINTER.mint(
            approval_id=self.id,
            person=person,
            payload_digest=DIGEST,
            issued_at=at,
            expires_at=now() + HOUR,
            nonce=f"{at.timestamp():.6f}{person}".rjust(20, "-")[:64],
        )
        return address.rpartition("/")[2]

    async def put(self, person: str, *roles: Role, by: ActorKey = ADMIN, **more: Any) -> Principal:
        request = {"roles": list(roles), "active": True, "as_of": now(), **more}
        return await self.principal("put", person, sign_principal_action(by, person, request, at=now(), action="put"))

    async def revoke(self, person: str, *, by: ActorKey = ADMIN) -> Principal:
        return await self.principal("revoke", person, sign_principal_action(by, person, {}, at=now()))

    async def principal(self, action: str, person: str, body: dict[str, Any]) -> Principal:
        target: Target[dict[str, Any], Principal] = Target("Principals", action, dict[str, Any], Principal)
        return await self.client.call(target, body, key=person)

    async def open_for(self, *names: str, **question: Any) -> list[str]:
        people = [self.person(name) for name in names]
        await self.asked(requester="req", payload=PAYLOAD, approvers=people, **question)
        return people

    def key(self, person: str, *roles: Role) -> ActorKey:
        return ActorKey.issue(ISSUER, actor=person, roles=roles or (Role.APPROVER,), lifetime=HOUR, now=now())


@pytest_asyncio.fixture
async def desk(restate: Restate) -> AsyncIterator[RightsDesk]:
    config = ApprovalsConfig(signing=RULES, link_keys=(LINKS.public,))
    env = await restate.serve(*definitions(config), asking)
    async with RightsDesk(env) as desk:
        yield desk


async def test_link_ends_with_the_right(desk: RightsDesk):
    (ada,) = await desk.open_for("ada")
    token = desk.link(ada)
    for change, reason in [
        ({"active": False, "revoked_before": now()}, "disabled"),
        ({"active": True}, "revoked"),
    ]:
        await desk.put(ada, Role.APPROVER, **change)
        assert why(await refused(desk.by_link(token))) == (403, reason)
    await desk.put(ada, Role.VIEWER)
    assert why(await refused(desk.by_link(desk.link(ada)))) == (403, "role")
    status = await desk.status()
    assert [(entry.action, entry.actor, entry.result, entry.details.get("why")) for entry in status.audit_log[1:]] == [
        ("approve", ada, "refused:rights_withdrawn", reason) for reason in ("disabled", "revoked", "role")
    ]
    await desk.put(ada, Role.APPROVER)
    receipt = await desk.by_link(desk.link(ada))
    assert (receipt.actor, receipt.status) == (ada, "approved")


async def test_unstated_principal_votes_until_revoked(desk: RightsDesk):
    ada, bob = await desk.open_for("ada", "bob", quorum=2)
    to_bob = desk.link(bob)
    assert (await desk.by_link(desk.link(ada))).status == "open"
    assert (await desk.revoke(bob, by=desk.key(bob))).roles is None
    assert why(await refused(desk.by_link(to_bob))) == (403, "revoked")
    assert (await desk.by_link(desk.link(bob))).status == "approved"


async def test_links_of_one_approval_are_revoked(desk: RightsDesk):
    ada, bob = await desk.open_for("ada", "bob", quorum=2)
    to_ada, to_bob = desk.link(ada), desk.link(bob)
    eve = desk.key(desk.person("eve"))
    assert why(await refused(desk.act(eve, "revoke_links", person=bob))) == (403, "not_allowed_to_revoke")
    await desk.act(desk.key(ada), "revoke_links", person=ada, reason="lost my phone")
    error = await refused(desk.by_link(to_ada))
    assert (why(error), error.code) == ((403, "revoked"), "link_revoked")
    assert "request a new one" in error.message
    await desk.act(desk.key("olga", Role.OPERATOR), "revoke_links")
    assert why(await refused(desk.by_link(to_bob))) == (403, "revoked")
    await desk.act(desk.key("req"), "revoke_links")
    assert (await desk.by_link(desk.link(ada))).status == "open"
    assert (await desk.by_link(desk.link(bob))).status == "approved"
    status = await desk.status()
    assert check_approval(status, RULES).good
    assert [(entry.result, entry.details) for entry in status.audit_log if entry.action == "revoke_links"] == [
        ("refused:not_allowed_to_revoke", {"person": bob}),
        ("revoked", {"person": ada}),
        ("revoked", {}),
        ("revoked", {}),
    ]


async def test_reject_forged_revocation(desk: RightsDesk):
    (ada,) = await desk.open_for("ada")
    body = sign_action(desk.key(ada), "revoke_links", desk.id, DIGEST, {"person": ada}, at=now())
    for forged in (
        {"actor": ada, "person": ada},
        {**body, "person": desk.person("bob")},
        {**body, "person": None},
        {**body, "reason": "another"},
    ):
        assert (await refused(desk.send_body("revoke_links", forged))).status_code in (401, 403)
    assert (await desk.by_link(desk.link(ada))).status == "approved"


async def test_link_of_earlier_approval_is_refused(desk: RightsDesk):
    (ada,) = await desk.open_for("ada")
    opened = (await desk.status()).opened_at
    early = desk.link(ada, issued_at=opened - timedelta(milliseconds=1))
    assert why(await refused(desk.by_link(early))) == (403, "earlier_approval")


@pytest.mark.parametrize("whose", ["delegator", "delegate"])
async def test_delegation_ends_with_the_right(desk: RightsDesk, whose: str):
    ada, bob = await desk.open_for("ada", "bob", quorum=2)
    cy = desk.person("cy")
    await desk.act(desk.key(ada), "delegate", to=cy, until=(now() + HOUR).isoformat())
    await desk.inbox_has(cy, 1)
    withdrawn = ada if whose == "delegator" else cy
    await desk.put(withdrawn, Role.APPROVER, active=False, revoked_before=now())
    await desk.put(withdrawn, Role.APPROVER)  # granted again; the delegation stays revoked
    error = await refused(desk.act(desk.key(cy), "approve"))
    assert (error.status_code, error.code) == (403, "delegation_revoked")
    await desk.inbox_has(cy, 0)
    status = await desk.status()
    assert [(entry.action, entry.result) for entry in status.audit_log[2:]] == [
        ("revoke_delegation", "revoked"),
        ("approve", "refused:delegation_revoked"),
    ]
    assert withdrawn in status.audit_log[2].reason
    assert status.delegations[0].revoked_at is not None
    assert why(await refused(desk.by_link(desk.link(cy)))) == (403, "delegation_revoked")
    await desk.act(desk.key(ada), "delegate", to=cy, until=(now() + HOUR).isoformat())
    assert (await desk.act(desk.key(cy), "approve"))["on_behalf_of"] == ada
    assert (await desk.act(desk.key(bob), "approve"))["status"] == "approved"
    assert check_approval(await desk.status(), RULES).good


async def test_demoted_approver_cannot_delegate(desk: RightsDesk):
    ada, bob = await desk.open_for("ada", "bob", quorum=2)
    cy, until = desk.person("cy"), (now() + HOUR).isoformat()
    await desk.act(desk.key(ada), "delegate", to=cy, until=until)
    await desk.put(ada, Role.VIEWER)
    assert (await refused(desk.act(desk.key(cy), "approve"))).code == "delegation_revoked"
    assert why(await refused(desk.act(desk.key(ada), "delegate", to=cy, until=until))) == (403, "role")
    await desk.put(cy, Role.OPERATOR)
    assert why(await refused(desk.act(desk.key(bob), "delegate", to=cy, until=until))) == (403, "role")


async def test_delegation_beyond_bound_is_refused(desk: RightsDesk):
    (ada,) = await desk.open_for("ada", timeout=timedelta(days=60))
    until = now() + timedelta(days=30, minutes=5)
    error = await refused(desk.act(desk.key(ada), "delegate", to="cy", until=until.isoformat()))
    assert (error.status_code, error.metadata["field"]) == (400, "until")
    assert "at most 30 days" in error.message


async def test_old_credential_ends_with_the_right(desk: RightsDesk):
    (ada,) = await desk.open_for("ada")
    old = key_of(ada)  # issued ten minutes ago
    await desk.put(ada, Role.APPROVER, revoked_before=now())
    for act in ("approve", "reject", "delegate", "withdraw", "revoke_links"):
        more = {"to": "cy", "until": (now() + HOUR).isoformat()} if act == "delegate" else {}
        assert why(await refused(desk.act(old, act, **more))) == (403, "revoked")  # type: ignore[arg-type]
    assert (await desk.act(desk.key(ada), "approve"))["status"] == "approved"


async def test_only_administrators_state_rights(desk: RightsDesk):
    ada, boss = desk.person("ada"), desk.person("boss")
    state = {"roles": ["approver"], "active": True, "as_of": now()}
    good = sign_principal_action(desk.key(boss, Role.ADMINISTRATOR), ada, state, at=now(), action="put")
    for body, expected in [
        ({"actor": boss, "roles": ["approver"], "active": True, "as_of": now().isoformat()}, (401, "unsigned")),
        ({**good, "roles": ["administrator"]}, (403, "details")),
        (sign_principal_action(desk.key(ada), ada, state, at=now(), action="put"), (403, "forbidden")),
        ({**good, "as_of": (now() + HOUR).isoformat()}, (400, "invalid_input")),
    ]:
        assert why(await refused(desk.principal("put", ada, body))) == expected
    assert why(await refused(desk.principal("put", boss, good))) == (403, "target")
    assert why(await refused(desk.revoke(ada, by=desk.key("eve")))) == (403, "forbidden")
    assert await desk.client.call(principal_status, key=ada) == Principal()
    assert why(await refused(desk.client.call(principal_status, key=ada.upper()))) == (400, "invalid_input")
    assert (await desk.principal("put", ada, good)).roles == (Role.APPROVER,)
    assert why(await refused(desk.principal("put", ada, good))) == (409, "replayed")
    await desk.put(boss, Role.APPROVER)
    by_boss = desk.key(boss, Role.ADMINISTRATOR)
    assert why(await refused(desk.put(ada, Role.ADMINISTRATOR, by=by_boss))) == (403, "role")


async def test_older_statement_changes_no_roles(desk: RightsDesk):
    ada = desk.person("ada")
    at = now()
    await desk.put(ada, Role.VIEWER, as_of=at)
    late = await desk.put(ada, Role.APPROVER, as_of=at - HOUR, revoked_before=at - HOUR)
    assert (late.roles, late.as_of, late.revoked_before) == ((Role.VIEWER,), at, at - HOUR)
