"""Approvals that take signed acts only, on a real engine: what holds, and what is refused; links that decide."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
import restate as sdk

from perdure import Target, handler
from perdure.approvals.audit_log import verify_audit_log
from perdure.approvals.config import ApprovalsConfig
from perdure.approvals.links import LinkMinter
from perdure.approvals.messages import DecisionReceipt, LinkDecisionRequest, StageEnd
from perdure.approvals.notifications import ApprovalNotice
from perdure.approvals.request import Stage
from perdure.approvals.service import definitions
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
    mint_link,
    payload_digest,
)
from perdure.testing import Restate
from tests.integration.approvals_desk import HOUR, Desk, asking, end, refused
from tests.support import Recording, eventually

ISSUER, STRANGER, LINKS = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
MINTER = LinkMinter(LINKS, "https://console.example.com/")
PAYLOAD = {"amount": 150_000}
SHOWN = payload_digest(PAYLOAD)


def now() -> datetime:
    return datetime.now(UTC)


def key_of(
    actor: str, *, issuer: PrivateKey = ISSUER, roles: tuple[Role, ...] = (Role.APPROVER,), **more: Any
) -> ActorKey:
    return ActorKey.issue(issuer, actor=actor, roles=roles, lifetime=HOUR, now=now() - timedelta(minutes=10), **more)


class SignedDesk(Desk):
    """A desk where everything is signed."""

    async def ask(self, by: str = "", **question: Any) -> str:
        return await super().ask(by, **{"requester_verified": True, **question})

    async def act(self, key: ActorKey, act: SignableAction, shown: str = SHOWN, **request: Any) -> dict[str, Any]:
        return await self.send_body(act, sign_action(key, act, self.id, shown, request, at=now()))

    async def send_body(self, act: str, body: dict[str, Any]) -> dict[str, Any]:
        target: Any = Target("Approvals", act, dict[str, Any], dict[str, Any])
        answer: dict[str, Any] = await self.client.call(target, body, key=self.id)
        return answer

    async def by_link(self, token: str, *, approve: bool = True) -> DecisionReceipt:
        return await self.client.call(decide_by_link, LinkDecisionRequest(token=token, approve=approve), key=self.id)


def why(error: IngressError) -> tuple[int, str | None]:
    return error.status_code, error.metadata.get("why", error.code)


@pytest_asyncio.fixture
async def desk(restate: Restate, did: Recording) -> AsyncIterator[SignedDesk]:
    postbox = sdk.Service("Postbox")

    @handler(postbox)
    async def put(ctx: sdk.Context, notice: ApprovalNotice) -> None:
        did.add(f"{notice.to} {notice.approval_id}/{MINTER.link(notice)}")

    config = ApprovalsConfig(
        acts=SigningRules(mode=SigningMode.SIGNED, trust=TrustedKeys(issuers=(ISSUER.public,))),
        link_keys=(LINKS.public,),
        notify=Target("Postbox", "put", ApprovalNotice, None),
    )
    env = await restate.serve(*definitions(config), asking, postbox)
    async with SignedDesk(env) as desk:
        yield desk


async def test_a_signed_decision_counts_and_its_signature_is_kept(desk: SignedDesk):
    ada, bob = key_of("Ada"), key_of("bob", groups=["Finance"])
    await desk.asked(requester="req", payload=PAYLOAD, approvers=["ada", "group:finance"], quorum=2)
    receipt = await desk.act(ada, "approve", reason="fine")
    assert (receipt["actor"], receipt["signed"]) == ("ada", True)
    await desk.act(bob, "delegate", to="cy", until=(now() + HOUR).isoformat())
    cy = key_of("cy")
    receipt = await desk.act(cy, "approve")
    assert (receipt["on_behalf_of"], receipt["status"]) == ("bob", "approved")
    status = await desk.status()
    assert [(entry.act, entry.proof.credential.actor if entry.proof else None) for entry in status.audit_log] == [
        ("open", None),
        ("approve", "ada"),
        ("delegate", "bob"),
        ("approve", "cy"),
    ]
    assert verify_audit_log(desk.id, status.audit_log, head=status.head).intact
    # The kept signature is evidence of its own: it can be checked by who has the issuer's key only.
    kept = status.audit_log[1].proof
    assert kept is not None
    verified = TrustedKeys(issuers=(ISSUER.public,)).verify(
        kept, act="approve", target=f"Approvals/{desk.id}", payload_digest=SHOWN, now=now(), actor="ada", reason="fine"
    )
    assert verified.actor == "ada"


async def test_what_does_not_prove_it_is_refused_and_recorded(desk: SignedDesk):
    await desk.asked(requester="req", payload=PAYLOAD, approvers=["ada", "bob"], quorum=2)
    ada = key_of("ada")

    def signed(key: ActorKey, act: SignableAction = "approve", target: str = "", **more: Any) -> dict[str, Any]:
        return sign_action(key, act, target or desk.id, SHOWN, {}, at=more.pop("at", now())) | more

    good = signed(ada)
    forged = {**good, "proof": {**good["proof"], "signature": "A" * 86}}
    late = timedelta(minutes=9)
    cases: list[tuple[str, dict[str, Any], tuple[int, str]]] = [
        ("approve", {"actor": "ada"}, (401, "unsigned")),
        ("approve", forged, (401, "act_signature")),
        ("approve", signed(key_of("ada", issuer=STRANGER)), (401, "issuer")),
        ("approve", signed(ada, at=now() - late), (401, "too_old")),
        ("approve", signed(ada, at=now() + late), (401, "future")),
        ("approve", signed(ada, actor="bob"), (403, "actor")),
        ("approve", signed(ada, target="another"), (403, "target")),
        ("reject", good, (403, "act")),
        ("approve", {**good, "reason": "another"}, (403, "reason")),
        ("approve", {**good, "groups": ["finance"]}, (403, "groups_not_proven")),
        ("approve", signed(key_of("ada", roles=(Role.VIEWER,))), (403, "forbidden")),
        (
            "approve",
            sign_action(ada, "approve", desk.id, payload_digest({"amount": 1}), {}, at=now()),
            (409, "payload"),
        ),
        ("delegate", {"actor": "ada", "to": "eve", "until": (now() + HOUR).isoformat()}, (401, "unsigned")),
        ("withdraw", {"actor": "req"}, (401, "unsigned")),
    ]
    for act, body, expected in cases:
        error = await refused(desk.send_body(act, body))
        assert why(error) == expected, (act, expected, error.message)
    until = (now() + HOUR).isoformat()
    to_cy = sign_action(ada, "delegate", desk.id, SHOWN, {"to": "cy", "until": until}, at=now())
    assert why(await refused(desk.send_body("delegate", {**to_cy, "to": "eve"}))) == (403, "details")

    await desk.send_body("approve", good)
    assert why(await refused(desk.send_body("approve", good))) == (409, "replayed")
    status = await desk.status()
    assert (status.status, len(status.decisions), status.refusals) == ("open", 1, len(cases) + 2)
    refusals = [entry for entry in status.audit_log if entry.result.startswith("refused:")]
    assert len(refusals) == len(cases) + 2
    assert refusals[1].details["why"] == "act_signature"
    assert refusals[1].proof is not None
    assert verify_audit_log(desk.id, status.audit_log, head=status.head).intact


@pytest.mark.restate_modes("http2")
async def test_the_requester_proves_it_too(desk: SignedDesk):
    await desk.asked(requester="req", payload=PAYLOAD)
    req = key_of("req", roles=(Role.VIEWER,))
    assert why(await refused(desk.act(key_of("REQ"), "approve"))) == (403, "own_request")
    assert (await desk.act(req, "withdraw", reason="enough"))["status"] == "withdrawn"


@pytest.mark.restate_modes("http2")
async def test_an_early_signed_decision_counts_for_what_was_shown_only(desk: SignedDesk):
    assert (await desk.act(key_of("ada"), "approve"))["status"] == "expected"
    await desk.act(key_of("bob"), "approve", shown=payload_digest("something else"))
    await desk.ask(requester="req", payload=PAYLOAD, approvers=["ada", "bob"], quorum=2)
    status = await desk.status_where(lambda _: True)
    assert [decision.actor for decision in status.decisions] == ["ada"]
    assert status.audit_log[-1].result == "refused:wrong_payload"


@pytest.mark.restate_modes("http2")
async def test_who_is_refused_without_end_keeps_nobody_else_from_deciding(
    desk: SignedDesk, monkeypatch: pytest.MonkeyPatch
):
    for name, number in {"CROWDED": 4, "FOR_EACH": 2}.items():
        monkeypatch.setattr(f"perdure.security.nonces.{name}", number)
    await desk.asked(requester="req", payload=PAYLOAD, approvers=["ada", "bob"], quorum=2)
    codes = [(await refused(desk.act(key_of("req"), "reject"))).code for _ in range(6)]
    assert codes == ["own_request"] * 4 + ["too_many_acts"] * 2
    eve = [key_of("eve", roles=(Role.VIEWER,)) for _ in range(3)]
    codes = [(await refused(desk.act(key, "withdraw"))).code for key in eve]
    assert codes == ["not_the_requester"] * 2 + ["too_many_acts"]
    assert (await desk.act(key_of("ada"), "approve"))["status"] == "open"
    by_link = mint_link(
        LINKS,
        approval_id=desk.id,
        person="bob",
        payload_digest=SHOWN,
        issued_at=now(),
        expires_at=now() + HOUR,
        nonce="n" * 20,
    )
    assert (await desk.by_link(by_link)).status == "approved"


@pytest.mark.restate_modes("http2")
async def test_an_act_that_was_refused_can_not_be_sent_again_when_it_would_be_allowed(desk: SignedDesk):
    boss = key_of("boss")
    escalation = [Stage(approvers=["boss"], timeout=HOUR)]
    opened = await desk.asked(requester="req", payload=PAYLOAD, approvers=["ada"], escalation=escalation)
    copied = sign_action(boss, "approve", desk.id, SHOWN, {}, at=now())
    assert why(await refused(desk.send_body("approve", copied))) == (403, "not_an_approver")
    await desk.client.call(end, StageEnd(stage=0, opened_at=opened.opened_at), key=desk.id)
    assert why(await refused(desk.send_body("approve", copied))) == (409, "replayed")
    assert (await desk.act(boss, "approve"))["status"] == "approved"


async def test_a_link_decides_once_for_one_person(desk: SignedDesk, did: Recording):
    ada, bob = desk.person("ada"), desk.person("bob")
    await desk.asked(requester="req", payload=PAYLOAD, approvers=[ada, bob], quorum=2)

    async def link(person: str) -> str | None:
        found = [entry for entry in did.all() if entry.startswith(f"{person} {desk.id}/")]
        return found[0].rpartition("/l/")[2] if found else None

    to_ada = await eventually(lambda: link(ada), what="a link for ada")
    to_bob = await eventually(lambda: link(bob), what="a link for bob")

    def minted(**changes: Any) -> str:
        fields = {"approval_id": desk.id, "person": ada, "payload_digest": SHOWN, "issued_at": now()}
        fields |= {"expires_at": now() + HOUR}
        return mint_link(changes.pop("key", LINKS), **{**fields, "nonce": "n" * 20, **changes})

    for token, expected in [
        (to_ada[:-2], (401, "link")),
        (minted(key=STRANGER), (401, "link_signature")),
        (minted(expires_at=now()), (401, "link_expired")),
        (minted(approval_id="another"), (403, "target")),
        (minted(payload_digest=payload_digest("changed")), (409, "payload")),
        (minted(person="eve", nonce="e" * 20), (403, "not_an_approver")),
        (minted(person="req", nonce="r" * 20), (403, "own_request")),
    ]:
        assert why(await refused(desk.by_link(token))) == expected
    receipt = await desk.by_link(to_ada)
    assert (receipt.actor, receipt.status, receipt.signed) == (ada, "open", True)
    assert why(await refused(desk.by_link(to_ada))) == (409, "replayed")
    assert why(await refused(desk.by_link(to_ada, approve=False))) == (409, "replayed")
    assert (await desk.by_link(to_bob)).status == "approved"
    status = await desk.status()
    assert (status.refusals, status.decided_by) == (9, [ada, bob])
    assert [entry.details.get("by") for entry in status.audit_log if entry.result in ("counted", "approved")] == [
        "link"
    ] * 2
