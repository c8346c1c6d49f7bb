"""Approvals that reuse an ID: timers and links of the earlier approval have no effect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest_asyncio
import restate as sdk

from perdure import ObjectClient, Target, handler
from perdure.approvals.messages import DecisionReceipt, LinkDecisionRequest
from perdure.approvals.reconciler import find_orphans
from perdure.approvals.request import OnTimeout
from perdure.approvals.service import ApprovalsConfig, definitions
from perdure.approvals.targets import decide_by_link, repair_approval
from perdure.engine.admin import AdminClient
from perdure.security import PrivateKey, json_digest, mint_link
from perdure.testing import Restate
from tests.integration.approvals_harness import (
    HOUR,
    ApprovalClient,
    asking,
    refused,
    remind_proxy,
    state_holds,
)
from tests.support import eventually

LINKS = PrivateKey.generate()
PAYLOAD = {"amount": 150_000}

repair_proxy = sdk.VirtualObject("RepairProxy")


@handler(repair_proxy, "exclusive", name="repair")
async def repair_it(ctx: sdk.ObjectContext) -> None:
    await ObjectClient(ctx, repair_approval, ctx.key()).call()


class ReusedApprovalClient(ApprovalClient):
    """Client of approvals with a short retention."""

    async def pending(self, handler_: str) -> list[str]:
        """Return the pending invocations of a handler."""
        async with AdminClient(self.env.admin) as admin:
            sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals' and
                target_service_key = '{self.id}' and target_handler_name = '{handler_}' and status != 'completed'"""
            return [row["id"] for row in await admin.query(sql)]

    async def pending_are(self, handler_: str, number: int) -> None:
        async def matches() -> bool:
            return len(await self.pending(handler_)) == number

        await eventually(matches, what=f"{number} pending {handler_}")

    def link(self, person: str, nonce: str, lasts: timedelta = HOUR) -> str:
        return mint_link(
            LINKS,
            approval_id=self.id,
            person=person,
            payload_digest=json_digest(PAYLOAD),
            issued_at=datetime.now(UTC),
            expires_at=datetime.now(UTC) + lasts,
            nonce=nonce * 20,
        )

    async def by_link(self, token: str) -> DecisionReceipt:
        return await self.client.call(decide_by_link, LinkDecisionRequest(token=token, approve=True), key=self.id)


@pytest_asyncio.fixture
async def approval(restate: Restate) -> AsyncIterator[ReusedApprovalClient]:
    config = ApprovalsConfig(retention=timedelta(milliseconds=300), link_keys=(LINKS.public,))
    env = await restate.serve(*definitions(config), asking, remind_proxy, repair_proxy)
    async with ReusedApprovalClient(env) as approval:
        yield approval


async def test_reused_id_has_own_timers(approval: ReusedApprovalClient):
    await approval.asked(timeout=timedelta(seconds=6), remind_every=timedelta(seconds=5))
    await approval.approve("ada")
    await state_holds(approval)
    await approval.ask(by="again", timeout=HOUR, on_timeout=OnTimeout.APPROVE, remind_every=HOUR / 2)
    opened = await approval.status_where(lambda status: status.status == "open")
    for timer in ("end_stage", "remind"):
        assert len(await approval.pending(timer)) == 2, "timers of both approvals"
    await approval.pending_are("end_stage", 1)
    await approval.pending_are("remind", 1)
    assert await approval.status() == opened


async def test_used_link_is_refused_for_reused_id(approval: ReusedApprovalClient):
    await approval.asked(payload=PAYLOAD, approvers=["ada"])
    token = approval.link("ada", "a")
    assert (await approval.by_link(token)).status == "approved"
    await state_holds(approval, "nonces")
    # The remaining nonces are no approval.
    assert (await refused(approval.status())).status_code == 404
    assert (await refused(approval.by_link(token))).status_code == 404
    async with AdminClient(approval.env.admin) as admin:
        assert [each for each in await find_orphans(admin, timedelta(0)) if each.id == approval.id] == []
    await approval.client.call(Target("RepairProxy", "repair", None, None), key=approval.id)
    await state_holds(approval, "nonces")
    await approval.ask(by="again", payload=PAYLOAD, approvers=["ada"])
    await approval.status_where(lambda status: status.status == "open")
    error = await refused(approval.by_link(token))
    assert (error.status_code, error.metadata["why"]) == (403, "earlier_approval")
    assert (await approval.by_link(approval.link("ada", "b"))).status == "approved"


async def test_nonces_are_purged_after_expiry(approval: ReusedApprovalClient):
    await approval.asked(payload=PAYLOAD, approvers=["ada"])
    await approval.by_link(approval.link("ada", "a", timedelta(seconds=4)))
    await state_holds(approval)
    assert await approval.pending("purge") == []


async def test_nonce_purge_keeps_reused_approval(approval: ReusedApprovalClient):
    await approval.asked(payload=PAYLOAD, approvers=["ada"])
    await approval.by_link(approval.link("ada", "a", timedelta(seconds=6)))
    await state_holds(approval, "nonces")
    await approval.ask(by="again", payload=PAYLOAD, approvers=["ada", "bob"], quorum=2)
    await approval.status_where(lambda status: status.status == "open")
    token = approval.link("bob", "b")
    await approval.by_link(token)
    status = await approval.status()
    assert len(await approval.pending("purge")) == 1
    await approval.pending_are("purge", 0)
    assert await approval.status() == status
    assert (await refused(approval.by_link(token))).metadata["why"] == "replayed"
    assert (await approval.by_link(approval.link("ada", "c"))).status == "approved"
