"""An approval's id that is used again: nothing of its first life acts on the second, and no link counts in both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
import restate as sdk

from perdure import ObjectClient, Target, handler
from perdure.approvals.config import ApprovalsConfig
from perdure.approvals.messages import DecisionReceipt, LinkDecisionRequest, ReminderDue, StageEnd
from perdure.approvals.reconciler import look
from perdure.approvals.request import OnTimeout
from perdure.approvals.service import definitions
from perdure.approvals.targets import decide_by_link, mend
from perdure.engine.admin import AdminClient
from perdure.security import PrivateKey, mint_link, payload_digest
from perdure.testing import Restate
from tests.integration.approvals_desk import HOUR, Desk, asking, bell, end, left, refused, ring
from tests.support import eventually

LINKS = PrivateKey.generate()
PAYLOAD = {"amount": 150_000}

mender = sdk.VirtualObject("Mender")


@handler(mender, "exclusive", name="mend")
async def mend_it(ctx: sdk.ObjectContext) -> None:
    await ObjectClient(ctx, mend, ctx.key()).call()


class SecondDesk(Desk):
    """A desk whose approvals are forgotten soon after their end."""

    async def pending(self, handler_: str) -> list[str]:
        """Return the invocations of one of the approval's handlers that have not ended."""
        async with AdminClient(self.env.admin) as admin:
            sql = f"""select id from sys_invocation_status where target_service_name = 'Approvals' and
                target_service_key = '{self.id}' and target_handler_name = '{handler_}' and status != 'completed'"""
            return [row["id"] for row in await admin.query(sql)]

    async def pending_are(self, handler_: str, number: int) -> None:
        async def look_() -> bool:
            return len(await self.pending(handler_)) == number

        await eventually(look_, what=f"{number} pending {handler_}")

    def link(self, person: str, nonce: str, lasts: timedelta = HOUR) -> str:
        return mint_link(
            LINKS,
            approval_id=self.id,
            person=person,
            payload_digest=payload_digest(PAYLOAD),
            issued_at=datetime.now(UTC),
            expires_at=datetime.now(UTC) + lasts,
            nonce=nonce * 20,
        )

    async def by_link(self, token: str) -> DecisionReceipt:
        return await self.client.call(decide_by_link, LinkDecisionRequest(token=token, approve=True), key=self.id)


@pytest_asyncio.fixture
async def desk(restate: Restate) -> AsyncIterator[SecondDesk]:
    config = ApprovalsConfig(retention=timedelta(milliseconds=300), link_keys=(LINKS.public,))
    env = await restate.serve(*definitions(config), asking, bell, mender)
    async with SecondDesk(env) as desk:
        yield desk


async def test_a_second_life_has_all_of_its_own_time(desk: SecondDesk):
    await desk.asked(timeout=timedelta(seconds=6), remind_every=timedelta(seconds=5))
    await desk.approve("ada")
    await left(desk)
    await desk.ask(by="again", timeout=HOUR, on_timeout=OnTimeout.APPROVE, remind_every=HOUR / 2)
    opened = await desk.status_where(lambda status: status.status == "open")
    for timer in ("end_stage", "remind"):
        assert len(await desk.pending(timer)) == 2, "the first life's, and its own"
    await desk.pending_are("end_stage", 1)
    await desk.pending_are("remind", 1)
    assert await desk.status() == opened


async def test_timers_of_the_version_before_do_nothing_until_their_time(desk: SecondDesk):
    """They don't say of which life they are."""
    opened = await desk.asked(
        timeout=timedelta(seconds=5), remind_every=timedelta(seconds=4), on_timeout=OnTimeout.REJECT
    )
    async with AdminClient(desk.env.admin) as admin:
        for invocation in [*await desk.pending("end_stage"), *await desk.pending("remind")]:
            await admin.act(invocation, "kill")
    await desk.client.call(end, StageEnd(stage=0), key=desk.id)
    await desk.client.call(ring, ReminderDue(stage=0, number=1), key=desk.id)
    assert await desk.status() == opened
    assert (await desk.outcome()).outcome == "rejected"  # they came again, in time
    status = await desk.status()
    assert [entry.act for entry in status.audit_log] == ["open", "remind", "expire"]
    assert status.audit_log[1].at > opened.opened_at + timedelta(seconds=3.9)
    assert status.audit_log[2].at > opened.deadline - timedelta(milliseconds=50)


@pytest.mark.restate_modes("http2")
async def test_a_reminder_of_the_version_before_reminds_nobody_who_is_not_to_be_reminded(desk: SecondDesk):
    opened = await desk.asked()
    await desk.client.call(ring, ReminderDue(stage=0, number=1), key=desk.id)
    assert await desk.status() == opened
    await desk.approve("ada")
    await desk.client.call(end, StageEnd(stage=0), key=desk.id)
    await left(desk)


async def test_a_link_that_was_used_counts_in_no_second_life(desk: SecondDesk):
    await desk.asked(payload=PAYLOAD, approvers=["ada"])
    token = desk.link("ada", "a")
    assert (await desk.by_link(token)).status == "approved"
    await left(desk, "nonces")
    # What is left is no approval for anybody.
    assert (await refused(desk.status())).status_code == 404
    assert (await refused(desk.by_link(token))).status_code == 404
    async with AdminClient(desk.env.admin) as admin:
        assert [each for each in await look(admin, timedelta(0)) if each.id == desk.id] == []
    await desk.client.call(Target("Mender", "mend", None, None), key=desk.id)
    await left(desk, "nonces")
    await desk.ask(by="again", payload=PAYLOAD, approvers=["ada"])
    await desk.status_where(lambda status: status.status == "open")
    error = await refused(desk.by_link(token))
    assert (error.status_code, error.metadata["why"]) == (403, "earlier_approval")
    assert (await desk.by_link(desk.link("ada", "b"))).status == "approved"


async def test_what_is_known_of_links_ends_with_them(desk: SecondDesk):
    await desk.asked(payload=PAYLOAD, approvers=["ada"])
    await desk.by_link(desk.link("ada", "a", timedelta(seconds=4)))
    await left(desk)
    assert await desk.pending("forget") == []


async def test_the_end_of_links_leaves_a_second_life_alone(desk: SecondDesk):
    await desk.asked(payload=PAYLOAD, approvers=["ada"])
    await desk.by_link(desk.link("ada", "a", timedelta(seconds=6)))
    await left(desk, "nonces")
    await desk.ask(by="again", payload=PAYLOAD, approvers=["ada", "bob"], quorum=2)
    await desk.status_where(lambda status: status.status == "open")
    token = desk.link("bob", "b")
    await desk.by_link(token)
    status = await desk.status()
    assert len(await desk.pending("forget")) == 1
    await desk.pending_are("forget", 0)
    assert await desk.status() == status
    assert (await refused(desk.by_link(token))).metadata["why"] == "replayed"
    assert (await desk.by_link(desk.link("ada", "c"))).status == "approved"
