"""Shared parts of the approval tests: requesting workflows and a client of the approval services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import uuid4

import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import ControlPlaneService, IngressClient, ObjectClient, Orchestration, Target, handler
from perdure._runtime.serdes import serde_for
from perdure._wake_ups import new_awakeable
from perdure.approvals.messages import (
    ApprovalOutcome,
    ApprovalStatus,
    DecisionReceipt,
    DecisionRequest,
    DelegationReceipt,
    DelegationRequest,
    InboxItem,
    Leave,
    ReminderDue,
    StageEnd,
)
from perdure.approvals.notifications import ApprovalNotification
from perdure.approvals.reconciler import ApprovalReconciler, ApprovalReconcilerConfig
from perdure.approvals.request import ApprovalRequest, OnTimeout, Stage
from perdure.approvals.service import ApprovalsConfig, definitions
from perdure.approvals.targets import (
    approval_status,
    approve,
    delegate,
    end_stage,
    leave_approval,
    list_inbox,
    open_approval,
    reject,
    remind,
)
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError
from perdure.saga.approval_steps import await_approval
from perdure.testing import Restate, RestateEnvironment
from tests.support import Recording, eventually

HOUR = timedelta(hours=1)


class Question(BaseModel):
    """Request of the `Asking` workflow, which adds the wait and the awakeable."""

    approval_id: str
    requester: str = ""
    requester_verified: bool = False
    requester_owner: str = ""
    subject: str = ""
    approvers: list[str] = []
    quorum: int = 1
    timeout: timedelta = HOUR
    payload: Any = None
    groups: dict[str, list[str]] = {}
    veto: list[str] = []
    remind_every: timedelta | None = None
    on_timeout: OnTimeout | None = None
    escalation: list[Stage] = []


asking = sdk.Workflow("Asking")


@handler(asking, "main")
async def run(ctx: sdk.WorkflowContext, question: Question) -> ApprovalOutcome:
    awakeable, woken = new_awakeable(ctx)
    wait = ctx.uuid().hex
    request = ApprovalRequest(
        title=f"Question {question.approval_id}",
        wait=wait,
        awakeable=awakeable,
        opener=ctx.request().id,
        **dict(question),
    )
    ctx.set("wait", wait, serde=serde_for(str))
    return await await_approval(ctx, request, woken)


@handler(asking, "shared")
async def leave_it(ctx: sdk.WorkflowSharedContext, everyone: bool) -> None:
    wait = await ctx.get("wait", serde=serde_for(str))
    assert wait is not None
    request = None if everyone else Leave(wait=wait, reason="no longer needed")
    approval_id = ctx.key().partition("/")[0]
    await ObjectClient(ctx, leave_approval, approval_id).send(request)


@handler(asking, "shared")
async def send_raw(ctx: sdk.WorkflowSharedContext, body: dict[str, Any]) -> None:
    """Open an approval with an arbitrary body."""
    raw = serde_for(Any).serialize(body)
    await ctx.generic_call(open_approval.service, open_approval.handler, raw, key=ctx.key())


@handler(asking, "shared")
async def send_end(ctx: sdk.WorkflowSharedContext, due: StageEnd) -> None:
    await ObjectClient(ctx, end_stage, ctx.key()).call(due)


run_asking = Target("Asking", "run", Question, ApprovalOutcome)
leave = Target("Asking", "leave_it", bool, None)
end = Target("Asking", "send_end", StageEnd, None)

remind_proxy = sdk.VirtualObject("RemindProxy")


@handler(remind_proxy, "exclusive", name="remind")
async def remind_it(ctx: sdk.ObjectContext, due: ReminderDue) -> None:
    await ObjectClient(ctx, remind, ctx.key()).call(due)


send_reminder = Target("RemindProxy", "remind", ReminderDue, None)

gate = ControlPlaneService("Gate")


class GateRequest(BaseModel):
    timeout: timedelta = HOUR


@gate.main()
async def pass_gate(cp: Orchestration, request: GateRequest) -> bool:
    return await cp.await_human_approval(
        f"gate-{cp.key}", request.timeout, title="May it pass?", subject="req", payload={"key": cp.key}
    )


run_gate = Target("Gate", "run", GateRequest, bool)


class ApprovalClient:
    """Client of the approval services with a unique approval ID."""

    def __init__(self, env: RestateEnvironment) -> None:
        self.env = env
        self.id = f"A{uuid4().hex[:12]}"
        self.client = IngressClient(env.ingress, timeout=timedelta(seconds=30))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(self, by: str = "", **question: Any) -> str:
        """Start a workflow that waits for the approval; return its invocation ID."""
        key = f"{self.id}/{by}" if by else self.id
        return await self.client.send(run_asking, Question(approval_id=self.id, **question), key=key)

    async def asked(self, **question: Any) -> ApprovalStatus:
        await self.ask(**question)
        return await self.status_where(lambda _: True)

    async def outcome(self, by: str = "") -> ApprovalOutcome:
        return await self.client.attach(run_asking, key=f"{self.id}/{by}" if by else self.id)

    async def approve(self, actor: str, reason: str = "", **more: Any) -> DecisionReceipt:
        return await self.client.call(approve, DecisionRequest(actor=actor, reason=reason, **more), key=self.id)

    async def reject(self, actor: str, reason: str = "", **more: Any) -> DecisionReceipt:
        return await self.client.call(reject, DecisionRequest(actor=actor, reason=reason, **more), key=self.id)

    async def delegate(self, actor: str, to: str, until: datetime, **more: Any) -> DelegationReceipt:
        request = DelegationRequest(actor=actor, to=to, until=until, **more)
        return await self.client.call(delegate, request, key=self.id)

    async def status(self) -> ApprovalStatus:
        return await self.client.call(approval_status, key=self.id)

    async def status_where(self, condition: Any) -> ApprovalStatus:
        async def matches() -> ApprovalStatus | None:
            try:
                found = await self.status()
            except IngressError as error:
                if error.status_code != 404:
                    raise
                return None
            return found if condition(found) else None

        return await eventually(matches, what=f"approval {self.id} as expected")

    async def inbox(self, person: str) -> list[InboxItem]:
        return [item for item in await self.client.call(list_inbox, key=person) if item.approval_id == self.id]

    async def inbox_has(self, person: str, count: int) -> list[InboxItem]:
        async def matches() -> tuple[list[InboxItem]] | None:
            items = await self.inbox(person)
            return (items,) if len(items) == count else None

        (items,) = await eventually(matches, what=f"{count} item(s) in the inbox of {person}")
        return items

    def person(self, name: str) -> str:
        """Return a unique name, since inboxes outlive a test."""
        return f"{name}-{self.id.lower()}"


async def state_holds(approval: ApprovalClient, *names: str) -> None:
    """Wait until the approval's state has exactly these keys."""

    async def matches() -> bool:
        async with AdminClient(approval.env.admin) as admin:
            sql = f"select key from state where service_name = 'Approvals' and service_key = '{approval.id}'"
            return {row["key"] for row in await admin.query(sql)} == set(names)

    await eventually(matches, what=f"state of {names or 'nothing'} only")


async def refused(call: Any) -> IngressError:
    with pytest.raises(IngressError) as caught:
        await call
    return caught.value


async def notified(did: Recording, approval: ApprovalClient, *expected: str) -> None:
    async def matches() -> bool:
        return set(expected) <= set(did.of(approval.id))

    await eventually(matches, what=f"{expected} among the notifications {did.of(approval.id)}")


@asynccontextmanager
async def full_approvals(restate: Restate, did: Recording) -> AsyncIterator[ApprovalClient]:
    """Serve approvals with a recording notifier, a proxy for reminders and the reconciler."""
    notifier = sdk.Service("Notifier")

    @handler(notifier)
    async def put(ctx: sdk.Context, notification: ApprovalNotification) -> None:
        did.add(f"{notification.kind} {notification.approval_id}/{notification.to}")

    notify_target: Target[ApprovalNotification, None] = Target("Notifier", "put", ApprovalNotification, None)
    reconciler = ApprovalReconciler(
        ApprovalReconcilerConfig(restate.server.admin, restate.server.ingress, grace=timedelta(0))
    )
    config = ApprovalsConfig(notify=notify_target)
    env = await restate.serve(*definitions(config), reconciler, asking, gate, notifier, remind_proxy)
    async with ApprovalClient(env) as approval:
        yield approval
