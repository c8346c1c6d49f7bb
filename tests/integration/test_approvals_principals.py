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
from tests.integration.test_approvals_signatures import (
    DIGEST,
    ISSUER,
    LINKS,
    PAYLOAD,
    SignedApprovalClient,
    key_of,
    now,
    why,
)

RULES = SigningRules(mode=SigningMode.SIGNED, trusted_keys=TrustedKeys(issuers=(ISSUER.public,)))
ADMIN = key_of("admin", roles=(Role.ADMINISTRATOR,))
MINTER = LinkMinter(LINKS, "https://console.example.com")


class PrincipalsClient(SignedApprovalClient):
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
async def approval(restate: Restate) -> AsyncIterator[PrincipalsClient]:
    config = ApprovalsConfig(signing=RULES, link_keys=(LINKS.public,))
    env = await restate.serve(*definitions(config), asking)
    async with PrincipalsClient(env) as approval:
        yield approval


async def test_link_ends_with_the_right(approval: PrincipalsClient):
    (ada,) = await approval.open_for("ada")
    token = approval.link(ada)
    for change, reason in [
        ({"active": False, "revoked_before": now()}, "disabled"),
        ({"active": True}, "revoked"),
    ]:
        await approval.put(ada, Role.APPROVER, **change)
        assert why(await refused(approval.by_link(token))) == (403, reason)
    await approval.put(ada, Role.VIEWER)
    assert why(await refused(approval.by_link(approval.link(ada)))) == (403, "role")
    status = await approval.status()
    assert [(entry.action, entry.actor, entry.result, entry.details.get("why")) for entry in status.audit_log[1:]] == [
        ("approve", ada, "refused:rights_withdrawn", reason) for reason in ("disabled", "revoked", "role")
    ]
    await approval.put(ada, Role.APPROVER)
    receipt = await approval.by_link(approval.link(ada))
    assert (receipt.actor, receipt.status) == (ada, "approved")


async def test_unstated_principal_votes_until_revoked(approval: PrincipalsClient):
    ada, bob = await approval.open_for("ada", "bob", quorum=2)
    to_bob = approval.link(bob)
    assert (await approval.by_link(approval.link(ada))).status == "open"
    assert (await approval.revoke(bob, by=approval.key(bob))).roles is None
    assert why(await refused(approval.by_link(to_bob))) == (403, "revoked")
    assert (await approval.by_link(approval.link(bob))).status == "approved"


async def test_links_of_one_approval_are_revoked(approval: PrincipalsClient):
    ada, bob = await approval.open_for("ada", "bob", quorum=2)
    to_ada, to_bob = approval.link(ada), approval.link(bob)
    eve = approval.key(approval.person("eve"))
    assert why(await refused(approval.act(eve, "revoke_links", person=bob))) == (403, "not_allowed_to_revoke")
    await approval.act(approval.key(ada), "revoke_links", person=ada, reason="lost my phone")
    error = await refused(approval.by_link(to_ada))
    assert (why(error), error.code) == ((403, "revoked"), "link_revoked")
    assert "request a new one" in error.message
    await approval.act(approval.key("olga", Role.OPERATOR), "revoke_links")
    assert why(await refused(approval.by_link(to_bob))) == (403, "revoked")
    await approval.act(approval.key("req"), "revoke_links")
    assert (await approval.by_link(approval.link(ada))).status == "open"
    assert (await approval.by_link(approval.link(bob))).status == "approved"
    status = await approval.status()
    assert check_approval(status, RULES).good
    assert [(entry.result, entry.details) for entry in status.audit_log if entry.action == "revoke_links"] == [
        ("refused:not_allowed_to_revoke", {"person": bob}),
        ("revoked", {"person": ada}),
        ("revoked", {}),
        ("revoked", {}),
    ]


async def test_reject_forged_revocation(approval: PrincipalsClient):
    (ada,) = await approval.open_for("ada")
    body = sign_action(approval.key(ada), "revoke_links", approval.id, DIGEST, {"person": ada}, at=now())
    for forged in (
        {"actor": ada, "person": ada},
        {**body, "person": approval.person("bob")},
        {**body, "person": None},
        {**body, "reason": "another"},
    ):
        assert (await refused(approval.send_body("revoke_links", forged))).status_code in (401, 403)
    assert (await approval.by_link(approval.link(ada))).status == "approved"


async def test_link_of_earlier_approval_is_refused(approval: PrincipalsClient):
    (ada,) = await approval.open_for("ada")
    opened = (await approval.status()).opened_at
    early = approval.link(ada, issued_at=opened - timedelta(milliseconds=1))
    assert why(await refused(approval.by_link(early))) == (403, "earlier_approval")


@pytest.mark.parametrize("whose", ["delegator", "delegate"])
async def test_delegation_ends_with_the_right(approval: PrincipalsClient, whose: str):
    ada, bob = await approval.open_for("ada", "bob", quorum=2)
    cy = approval.person("cy")
    await approval.act(approval.key(ada), "delegate", to=cy, until=(now() + HOUR).isoformat())
    await approval.inbox_has(cy, 1)
    withdrawn = ada if whose == "delegator" else cy
    await approval.put(withdrawn, Role.APPROVER, active=False, revoked_before=now())
    await approval.put(withdrawn, Role.APPROVER)  # granted again; the delegation stays revoked
    error = await refused(approval.act(approval.key(cy), "approve"))
    assert (error.status_code, error.code) == (403, "delegation_revoked")
    await approval.inbox_has(cy, 0)
    status = await approval.status()
    assert [(entry.action, entry.result) for entry in status.audit_log[2:]] == [
        ("revoke_delegation", "revoked"),
        ("approve", "refused:delegation_revoked"),
    ]
    assert withdrawn in status.audit_log[2].reason
    assert status.delegations[0].revoked_at is not None
    assert why(await refused(approval.by_link(approval.link(cy)))) == (403, "delegation_revoked")
    await approval.act(approval.key(ada), "delegate", to=cy, until=(now() + HOUR).isoformat())
    assert (await approval.act(approval.key(cy), "approve"))["on_behalf_of"] == ada
    assert (await approval.act(approval.key(bob), "approve"))["status"] == "approved"
    assert check_approval(await approval.status(), RULES).good


async def test_demoted_approver_cannot_delegate(approval: PrincipalsClient):
    ada, bob = await approval.open_for("ada", "bob", quorum=2)
    cy, until = approval.person("cy"), (now() + HOUR).isoformat()
    await approval.act(approval.key(ada), "delegate", to=cy, until=until)
    await approval.put(ada, Role.VIEWER)
    assert (await refused(approval.act(approval.key(cy), "approve"))).code == "delegation_revoked"
    assert why(await refused(approval.act(approval.key(ada), "delegate", to=cy, until=until))) == (403, "role")
    await approval.put(cy, Role.OPERATOR)
    assert why(await refused(approval.act(approval.key(bob), "delegate", to=cy, until=until))) == (403, "role")


async def test_delegation_beyond_bound_is_refused(approval: PrincipalsClient):
    (ada,) = await approval.open_for("ada", timeout=timedelta(days=60))
    until = now() + timedelta(days=30, minutes=5)
    error = await refused(approval.act(approval.key(ada), "delegate", to="cy", until=until.isoformat()))
    assert (error.status_code, error.metadata["field"]) == (400, "until")
    assert "at most 30 days" in error.message


async def test_old_credential_ends_with_the_right(approval: PrincipalsClient):
    (ada,) = await approval.open_for("ada")
    old = key_of(ada)  # issued ten minutes ago
    await approval.put(ada, Role.APPROVER, revoked_before=now())
    for act in ("approve", "reject", "delegate", "withdraw", "revoke_links"):
        more = {"to": "cy", "until": (now() + HOUR).isoformat()} if act == "delegate" else {}
        assert why(await refused(approval.act(old, act, **more))) == (403, "revoked")  # type: ignore[arg-type]
    assert (await approval.act(approval.key(ada), "approve"))["status"] == "approved"


async def test_only_administrators_state_rights(approval: PrincipalsClient):
    ada, boss = approval.person("ada"), approval.person("boss")
    state = {"roles": ["approver"], "active": True, "as_of": now()}
    good = sign_principal_action(approval.key(boss, Role.ADMINISTRATOR), ada, state, at=now(), action="put")
    for body, expected in [
        ({"actor": boss, "roles": ["approver"], "active": True, "as_of": now().isoformat()}, (401, "unsigned")),
        ({**good, "roles": ["administrator"]}, (403, "details")),
        (sign_principal_action(approval.key(ada), ada, state, at=now(), action="put"), (403, "forbidden")),
        ({**good, "as_of": (now() + HOUR).isoformat()}, (400, "invalid_input")),
    ]:
        assert why(await refused(approval.principal("put", ada, body))) == expected
    assert why(await refused(approval.principal("put", boss, good))) == (403, "target")
    assert why(await refused(approval.revoke(ada, by=approval.key("eve")))) == (403, "forbidden")
    assert await approval.client.call(principal_status, key=ada) == Principal()
    assert why(await refused(approval.client.call(principal_status, key=ada.upper()))) == (400, "invalid_input")
    assert (await approval.principal("put", ada, good)).roles == (Role.APPROVER,)
    assert why(await refused(approval.principal("put", ada, good))) == (409, "replayed")
    await approval.put(boss, Role.APPROVER)
    by_boss = approval.key(boss, Role.ADMINISTRATOR)
    assert why(await refused(approval.put(ada, Role.ADMINISTRATOR, by=by_boss))) == (403, "role")


async def test_older_statement_changes_no_roles(approval: PrincipalsClient):
    ada = approval.person("ada")
    at = now()
    await approval.put(ada, Role.VIEWER, as_of=at)
    late = await approval.put(ada, Role.APPROVER, as_of=at - HOUR, revoked_before=at - HOUR)
    assert (late.roles, late.as_of, late.revoked_before) == ((Role.VIEWER,), at, at - HOUR)
