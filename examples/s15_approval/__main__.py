"""Request purchases: one approved, one rejected, one without a decision."""

from __future__ import annotations

import sys
from datetime import timedelta

from examples._session import Example, Session
from examples.s15_approval.app import Purchase, buy, purchases
from perdure.approvals.messages import ApprovalStatus, DecisionRequest
from perdure.approvals.targets import approval_status, approve, reject
from perdure.errors import IngressError, NotFound


async def play(session: Session) -> None:
    """Run the example."""
    desk, yacht, lamp = session.key("desk"), session.key("yacht"), session.key("lamp")
    await session.ingress.send(buy, Purchase(what="a desk", by="ada"), key=desk)
    await session.ingress.send(buy, Purchase(what="a yacht", by="ada"), key=yacht)

    session.print(f"open: {(await _opened(session, desk)).title}")
    error = await session.refusal(session.ingress.call(approve, DecisionRequest(actor="ada"), key=desk))
    session.print(f"ada herself: {error.status_code} {error.message}")
    receipt = await session.ingress.call(approve, DecisionRequest(actor="olga", reason="of course"), key=desk)
    session.print(f"olga: {receipt.action}, so it's {receipt.status}; {await session.ingress.attach(buy, key=desk)}")

    await _opened(session, yacht)
    await session.ingress.call(reject, DecisionRequest(actor="olga", reason="really?"), key=yacht)
    error = await session.refusal(session.ingress.attach(buy, key=yacht))
    session.print(f"the yacht: {error.status_code} {error.message}")

    hasty = Purchase(what="a lamp", by="ada", decide_within=timedelta(milliseconds=200))
    error = await session.refusal(session.ingress.call(buy, hasty, key=lamp))
    session.print(f"the lamp: {error.status_code} {error.message}")


async def _opened(session: Session, key: str) -> ApprovalStatus:
    async def status() -> ApprovalStatus | None:
        try:
            return await session.ingress.call(approval_status, key=key)
        except IngressError as error:
            if error.code != NotFound.code:
                raise
            return None  # not open yet

    return await session.until(status)


example = Example("examples.s15_approval", play, (purchases,))

if __name__ == "__main__":
    sys.exit(example.main())
