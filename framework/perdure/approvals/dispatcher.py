"""`ApprovalDispatcher`: tells people of approvals, on behalf of `Approvals`.

The engine answers a send to a handler that it does not know with a retry of the *sender*, without end, and the target
of notices is the hosting service's choice. So `Approvals` sends to this dispatcher, which is always there; the
dispatcher sends on, and gives up after ten minutes. A notice that is lost so is an invocation that was killed: the
engine shows it.
"""

from __future__ import annotations

import json
from uuid import NAMESPACE_OID, uuid5

import restate

from perdure._runtime.dispatch import LONG_RETRIES
from perdure.approvals.approval import NewsKind
from perdure.approvals.config import ApprovalsConfig
from perdure.approvals.notifications import ApprovalNotice, Recipient, Tell
from perdure.clients import ServiceClient
from perdure.handlers import handler
from perdure.targets import Target

DISPATCHER = "ApprovalDispatcher"

tell_target = Target(DISPATCHER, "tell", Tell, None)


class ApprovalDispatcher:
    """Sends notices on.

    Args:
        config: Whom to send to.
    """

    def __init__(self, config: ApprovalsConfig) -> None:
        self._config = config
        self.definition = restate.Service(
            DISPATCHER,
            description="Tells people of approvals that wait for them.",
            ingress_private=True,
            invocation_retry_policy=LONG_RETRIES,
        )
        handler(self.definition, name=tell_target.handler)(self.tell)

    async def tell(self, ctx: restate.Context, news: Tell) -> None:
        """Send each recipient a notice."""
        if self._config.notify is None:
            return
        for recipient in news.recipients:
            notice = notice_for(news, recipient)
            await ServiceClient(ctx, self._config.notify).send(notice, idempotency_key=notice.key)


def notice_for(news: Tell, recipient: Recipient) -> ApprovalNotice:
    """Return what one recipient is told.

    Args:
        news: What happened.
        recipient: Whom to tell.
    """
    return ApprovalNotice(
        key=notice_key(news.approval_id, news.kind, news.stage, news.number, recipient),
        kind=news.kind,
        approval_id=news.approval_id,
        to=recipient.name,
        title=news.title,
        requester=news.requester,
        requester_verified=news.requester_verified,
        subject=news.subject,
        payload_digest=news.payload_digest,
        at=news.at,
        until=recipient.until,
        in_place_of=recipient.in_place_of,
    )


def notice_key(approval_id: str, kind: NewsKind, stage: int, number: int, recipient: Recipient) -> str:
    """Return the key of a notice: the same for the same approval, stage, kind, and recipient with the same end.

    A digest, since ids and names may be longer together than a key; as a UUID, since that is never taken for a time.
    """
    facts = [approval_id, kind, stage, number, recipient.name, recipient.until.isoformat()]
    return f"approval:{uuid5(NAMESPACE_OID, json.dumps(facts))}"
