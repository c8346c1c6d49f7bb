"""Signed actions and links on a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
import restate as sdk

from perdure import Target, handler
from perdure.approvals.audit_log import verify_audit_log
from perdure.approvals.links import LinkMinter
from perdure.approvals.messages import DecisionReceipt, LinkDecisionRequest, StageEnd
from perdure.approvals.notifications import ApprovalNotification
from perdure.approvals.request import Stage
from perdure.approvals.service import ApprovalsConfig, definitions
from perdure.approvals.signatures import SignableAction, sign_action
from perdure.approvals.targets import decide_by_link
from perdure.errors import IngressError
from perdure.security import (
    ActorKey,
    PrivateKey,
    Role,
    SigningMode,
    SigningRules,
    TrustedKeys,
    json_digest,
    mint_link,
)
from perdure.testing import Restate
from tests.integration.approvals_harness import HOUR, ApprovalClient, asking, end, refused
from tests.support import Recording, eventually

ISSUER, STRANGER, LINKS = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
MINTER = LinkMinter(LINKS, "https://console.example.com/")
PAYLOAD = {"amount": 150_000}
DIGEST = json_digest(PAYLOAD)


def now() -> datetime:
    return datetime.now(UTC)


def key_of(
    actor: str, *, issuer: PrivateKey = ISSUER, roles: tuple[Role, ...] = (Role.APPROVER,), **more: Any
) -> ActorKey:
    return ActorKey.issue(issuer, actor=actor, roles=roles, lifetime=HOUR, now=now() - timedelta(minutes=10), **more)


class SignedApprovalClient(ApprovalClient):
    """Client that signs its actions."""

    async def ask(self, by: str = "", **question: Any) -> str:
        return await super().ask(by, **{"requester_verified": True, **question})

    async def act(self, key: ActorKey, action: SignableAction, digest: str = DIGEST, **request: Any) -> dict[str, Any]:
        return await self.send_body(action, sign_action(key, action, self.id, digest, request, at=now()))

    async def send_body(self, action: str, body: dict[str, Any]) -> dict[str, Any]:
        target: Any = Target("Approvals", action, dict[str, Any], dict[str, Any])
        answer: dict[str, Any] = await self.client.call(target, body, key=self.id)
        return answer

    async def by_link(self, token: str, *, approve: bool = True) -> DecisionReceipt:
        return await self.client.call(decide_by_link, LinkDecisionRequest(token=token, approve=approve), key=self.id)


def why(error: IngressError) -> tuple[int, str | None]:
    return error.status_code, error.metadata.get("why", error.code)


@pytest_asyncio.fixture
async def approval(restate: Restate, did: Recording) -> AsyncIterator[SignedApprovalClient]:
    notifier = sdk.Service("Notifier")

    @handler(notifier)
    async def put(ctx: sdk.Context, notification: ApprovalNotification) -> None:
        did.add(f"{notification.to} {notification.approval_id}/{MINTER.link(notification)}")

    config = ApprovalsConfig(
        signing=SigningRules(mode=SigningMode.SIGNED, trusted_keys=TrustedKeys(issuers=(ISSUER.public,))),
        link_keys=(LINKS.public,),
        notify=Target("Notifier", "put", ApprovalNotification, None),
    )
    env = await restate.serve(*definitions(config), asking, notifier)
    async with SignedApprovalClient(env) as approval:
        yield approval


async def test_signed_vote_is_stored_with_signature(approval: SignedApprovalClient):
    ada, bob = key_of("Ada"), key_of("bob", groups=["Finance"])
    await approval.asked(requester="req", payload=PAYLOAD, approvers=["ada", "group:finance"], quorum=2)
    receipt = await approval.act(ada, "approve", reason="fine")
    assert (receipt["actor"], receipt["signed"]) == ("ada", True)
    await approval.act(bob, "delegate", to="cy", until=(now() + HOUR).isoformat())
    cy = key_of("cy")
    receipt = await approval.act(cy, "approve")
    assert (receipt["on_behalf_of"], receipt["status"]) == ("bob", "approved")
    status = await approval.status()
    assert [
        (entry.action, entry.signed_action.credential.actor if entry.signed_action else None)
        for entry in status.audit_log
    ] == [
        ("open", None),
        ("approve", "ada"),
        ("delegate", "bob"),
        ("approve", "cy"),
    ]
    assert verify_audit_log(approval.id, status.audit_log, head=status.head).intact
    # The stored signature is verifiable with the issuer's key alone.
    stored = status.audit_log[1].signed_action
    assert stored is not None
    verified = TrustedKeys(issuers=(ISSUER.public,)).verify(
        stored,
        action="approve",
        target=f"Approvals/{approval.id}",
        payload_digest=DIGEST,
        now=now(),
        actor="ada",
        reason="fine",
    )
    assert verified.actor == "ada"


async def test_invalid_signatures_are_refused_and_recorded(approval: SignedApprovalClient):
    await approval.asked(requester="req", payload=PAYLOAD, approvers=["ada", "bob"], quorum=2)
    ada = key_of("ada")

    def signed(key: ActorKey, action: SignableAction = "approve", target: str = "", **more: Any) -> dict[str, Any]:
        return sign_action(key, action, target or approval.id, DIGEST, {}, at=more.pop("at", now())) | more

    good = signed(ada)
    forged = {**good, "signed_action": {**good["signed_action"], "signature": "A" * 86}}
    late = timedelta(minutes=9)
    cases: list[tuple[str, dict[str, Any], tuple[int, str]]] = [
        ("approve", {"actor": "ada"}, (401, "unsigned")),
        ("approve", forged, (401, "action_signature")),
        ("approve", signed(key_of("ada", issuer=STRANGER)), (401, "issuer")),
        ("approve", signed(ada, at=now() - late), (401, "too_old")),
        ("approve", signed(ada, at=now() + late), (401, "future")),
        ("approve", signed(ada, actor="bob"), (403, "actor")),
        ("approve", signed(ada, target="another"), (403, "target")),
        ("reject", good, (403, "action")),
        ("approve", {**good, "reason": "another"}, (403, "reason")),
        ("approve", {**good, "groups": ["finance"]}, (403, "unverified_groups")),
        ("approve", signed(key_of("ada", roles=(Role.VIEWER,))), (403, "forbidden")),
        (
            "approve",
            sign_action(ada, "approve", approval.id, json_digest({"amount": 1}), {}, at=now()),
            (409, "payload"),
        ),
        ("delegate", {"actor": "ada", "to": "eve", "until": (now() + HOUR).isoformat()}, (401, "unsigned")),
        ("withdraw", {"actor": "req"}, (401, "unsigned")),
    ]
    for action, body, expected in cases:
        error = await refused(approval.send_body(action, body))
        assert why(error) == expected, (action, expected, error.message)
    until = (now() + HOUR).isoformat()
    to_cy = sign_action(ada, "delegate", approval.id, DIGEST, {"to": "cy", "until": until}, at=now())
    assert why(await refused(approval.send_body("delegate", {**to_cy, "to": "eve"}))) == (403, "details")

    await approval.send_body("approve", good)
    assert why(await refused(approval.send_body("approve", good))) == (409, "replayed")
    status = await approval.status()
    assert (status.status, len(status.decisions), status.refusals) == ("open", 1, len(cases) + 2)
    refusals = [entry for entry in status.audit_log if entry.result.startswith("refused:")]
    assert len(refusals) == len(cases) + 2
    assert refusals[1].details["why"] == "action_signature"
    assert refusals[1].signed_action is not None
    assert verify_audit_log(approval.id, status.audit_log, head=status.head).intact


@pytest.mark.restate_modes("http2")
async def test_withdrawal_requires_signature(approval: SignedApprovalClient):
    await approval.asked(requester="req", payload=PAYLOAD)
    req = key_of("req", roles=(Role.VIEWER,))
    assert why(await refused(approval.act(key_of("REQ"), "approve"))) == (403, "own_request")
    assert (await approval.act(req, "withdraw", reason="enough"))["status"] == "withdrawn"


@pytest.mark.restate_modes("http2")
async def test_early_signed_vote_counts_for_signed_payload(approval: SignedApprovalClient):
    assert (await approval.act(key_of("ada"), "approve"))["status"] == "expected"
    await approval.act(key_of("bob"), "approve", digest=json_digest("something else"))
    await approval.ask(requester="req", payload=PAYLOAD, approvers=["ada", "bob"], quorum=2)
    status = await approval.status_where(lambda _: True)
    assert [decision.actor for decision in status.decisions] == ["ada"]
    assert status.audit_log[-1].result == "refused:wrong_payload"


@pytest.mark.restate_modes("http2")
async def test_refused_actor_does_not_block_others(approval: SignedApprovalClient, monkeypatch: pytest.MonkeyPatch):
    for name, number in {"UNRESTRICTED_NONCES": 4, "NONCES_PER_PERSON": 2}.items():
        monkeypatch.setattr(f"perdure.security.nonces.{name}", number)
    await approval.asked(requester="req", payload=PAYLOAD, approvers=["ada", "bob"], quorum=2)
    codes = [(await refused(approval.act(key_of("req"), "reject"))).code for _ in range(6)]
    assert codes == ["own_request"] * 4 + ["too_many_actions"] * 2
    eve = [key_of("eve", roles=(Role.VIEWER,)) for _ in range(3)]
    codes = [(await refused(approval.act(key, "withdraw"))).code for key in eve]
    assert codes == ["not_the_requester"] * 2 + ["too_many_actions"]
    assert (await approval.act(key_of("ada"), "approve"))["status"] == "open"
    by_link = mint_link(
        LINKS,
        approval_id=approval.id,
        person="bob",
        payload_digest=DIGEST,
        issued_at=now(),
        expires_at=now() + HOUR,
        nonce="n" * 20,
    )
    assert (await approval.by_link(by_link)).status == "approved"


@pytest.mark.restate_modes("http2")
async def test_refused_action_cannot_be_replayed(approval: SignedApprovalClient):
    boss = key_of("boss")
    escalation = [Stage(approvers=["boss"], timeout=HOUR)]
    opened = await approval.asked(requester="req", payload=PAYLOAD, approvers=["ada"], escalation=escalation)
    copied = sign_action(boss, "approve", approval.id, DIGEST, {}, at=now())
    assert why(await refused(approval.send_body("approve", copied))) == (403, "not_an_approver")
    await approval.client.call(end, StageEnd(stage=0, opened_at=opened.opened_at), key=approval.id)
    assert why(await refused(approval.send_body("approve", copied))) == (409, "replayed")
    assert (await approval.act(boss, "approve"))["status"] == "approved"


async def test_link_decides_once(approval: SignedApprovalClient, did: Recording):
    ada, bob = approval.person("ada"), approval.person("bob")
    await approval.asked(requester="req", payload=PAYLOAD, approvers=[ada, bob], quorum=2)

    async def link(person: str) -> str | None:
        found = [entry for entry in did.all() if entry.startswith(f"{person} {approval.id}/")]
        return found[0].rpartition("/l/")[2] if found else None

    to_ada = await eventually(lambda: link(ada), what="a link for ada")
    to_bob = await eventually(lambda: link(bob), what="a link for bob")

    def minted(**changes: Any) -> str:
        fields = {"approval_id": approval.id, "person": ada, "payload_digest": DIGEST, "issued_at": now()}
        fields |= {"expires_at": now() + HOUR}
        return mint_link(changes.pop("key", LINKS), **{**fields, "nonce": "n" * 20, **changes})

    for token, expected in [
        (to_ada[:-2], (401, "link")),
        (minted(key=STRANGER), (401, "link_signature")),
        (minted(expires_at=now()), (401, "link_expired")),
        (minted(approval_id="another"), (403, "target")),
        (minted(payload_digest=json_digest("changed")), (409, "payload")),
        (minted(person="eve", nonce="e" * 20), (403, "not_an_approver")),
        (minted(person="req", nonce="r" * 20), (403, "own_request")),
    ]:
        assert why(await refused(approval.by_link(token))) == expected
    receipt = await approval.by_link(to_ada)
    assert (receipt.actor, receipt.status, receipt.signed) == (ada, "open", True)
    assert why(await refused(approval.by_link(to_ada))) == (409, "replayed")
    assert why(await refused(approval.by_link(to_ada, approve=False))) == (409, "replayed")
    assert (await approval.by_link(to_bob)).status == "approved"
    status = await approval.status()
    assert (status.refusals, status.decided_by) == (9, [ada, bob])
    assert [entry.details.get("by") for entry in status.audit_log if entry.result in ("counted", "approved")] == [
        "link"
    ] * 2
