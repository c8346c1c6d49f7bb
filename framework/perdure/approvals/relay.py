"""`ApprovalRelay`: tells people of approvals, on behalf of `Approvals`.

The engine answers a send to a handler that it does not know with a retry of the *sender*, without end, and the target
of notices is the hosting service's choice. So `Approvals` sends to this relay, which is always there; the relay sends
on, and gives up after ten minutes. A notice that is lost so is an invocation that was killed: the engine shows it.
"""

from __future__ import annotations

import json
from uuid import NAMESPACE_OID, uuid5

import restate

from perdure.approvals.approval import NewsKind
from perdure.approvals.config import ApprovalsConfig
from perdure.approvals.notices import ApprovalNotice, Recipient, Tell
from perdure.binding import handler
from perdure.clients import ServiceClient
from perdure.determinism import DeterministicHelpers
from perdure.people import ANYONE, is_group
from perdure.relays import GIVE_UP_LATE
from perdure.runs import run_with_retry
from perdure.security.links import mint_link
from perdure.targets import Target

RELAY = "ApprovalRelay"

tell_target = Target(RELAY, "tell", Tell, type(None))


class ApprovalRelay:
    """Mints links, and sends notices on.

    Args:
        config: Whom to send to, and the key of links.
    """

    def __init__(self, config: ApprovalsConfig) -> None:
        self._config = config
        self.definition = restate.Service(
            RELAY,
            description="Tells people of approvals that wait for them.",
            ingress_private=True,
            invocation_retry_policy=GIVE_UP_LATE,
        )
        handler(self.definition, name=tell_target.handler)(self.tell)

    async def tell(self, ctx: restate.Context, news: Tell) -> None:
        """Send each recipient a notice, with a link when it is a person."""
        if self._config.notify is None:
            return
        nonces = {each.name: DeterministicHelpers(ctx).uuid().hex for each in news.recipients}
        # In a run, since a replay under another key would mint other links than those that were sent.
        links: dict[str, str] = await run_with_retry(
            ctx, "mint links", self._mint, news, nonces, returns=dict[str, str]
        )
        for recipient in news.recipients:
            notice = notice_for(news, recipient, links.get(recipient.name))
            await ServiceClient(ctx, self._config.notify).send(notice, idempotency_key=notice.key)

    async def _mint(self, news: Tell, nonces: dict[str, str]) -> dict[str, str]:
        key = self._config.link_key
        if key is None:
            return {}
        address = self._config.console_url.rstrip("/")
        return {
            each.name: f"{address}/l/"
            + mint_link(
                key,
                approval_id=news.approval_id,
                person=each.name,
                payload_digest=news.payload_digest,
                expires_at=each.until,
                nonce=nonces[each.name],
            )
            for each in news.recipients
            if each.name != ANYONE and not is_group(each.name)
        }


def notice_for(news: Tell, recipient: Recipient, link: str | None) -> ApprovalNotice:
    """Return what one recipient is told.

    Args:
        news: What happened.
        recipient: Whom to tell.
        link: Where they can decide.
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
        until=recipient.until,
        in_place_of=recipient.in_place_of,
        link=link,
    )


def notice_key(approval_id: str, kind: NewsKind, stage: int, number: int, recipient: Recipient) -> str:
    """Return the key of a notice: the same for the same approval, stage, kind, and recipient with the same end.

    A digest, since ids and names may be longer together than a key; as a UUID, since that is never taken for a time.
    """
    facts = [approval_id, kind, stage, number, recipient.name, recipient.until.isoformat()]
    return f"approval:{uuid5(NAMESPACE_OID, json.dumps(facts))}"
