"""A purchase that is approved, one that is rejected, and one that nobody looks at."""

from __future__ import annotations

import sys
from datetime import timedelta

from examples._stage import Example, Stage
from examples.s15_approval.app import Purchase, buy, purchases
from perdure.approvals import service as approvals
from perdure.approvals.messages import ApprovalStatus, DecisionRequest
from perdure.approvals.targets import approval_status, approve, reject
from perdure.errors import IngressError


async def play(stage: Stage) -> None:
    """Play the example."""
    desk, yacht, lamp = stage.key("desk"), stage.key("yacht"), stage.key("lamp")
    await stage.ingress.send(buy, Purchase(what="a desk", by="ada"), key=desk)
    await stage.ingress.send(buy, Purchase(what="a yacht", by="ada"), key=yacht)

    stage.say(f"open: {(await _opened(stage, desk)).title}")
    error = await stage.refusal(stage.ingress.call(approve, DecisionRequest(actor="ada"), key=desk))
    stage.say(f"ada herself: {error.status_code} {error.message}")
    receipt = await stage.ingress.call(approve, DecisionRequest(actor="olga", reason="of course"), key=desk)
    stage.say(f"olga: {receipt.action}, so it's {receipt.status}; {await stage.ingress.attach(buy, key=desk)}")

    await _opened(stage, yacht)
    await stage.ingress.call(reject, DecisionRequest(actor="olga", reason="really?"), key=yacht)
    error = await stage.refusal(stage.ingress.attach(buy, key=yacht))
    stage.say(f"the yacht: {error.status_code} {error.message}")

    hasty = Purchase(what="a lamp", by="ada", decide_within=timedelta(milliseconds=200))
    error = await stage.refusal(stage.ingress.call(buy, hasty, key=lamp))
    stage.say(f"the lamp: {error.status_code} {error.message}")


async def _opened(stage: Stage, key: str) -> ApprovalStatus:
    async def status() -> ApprovalStatus | None:
        try:
            return await stage.ingress.call(approval_status, key=key)
        except IngressError as error:
            if error.status_code != 404:
                raise
            return None  # not opened yet

    return await stage.until(status)


example = Example("examples.s15_approval", play, (purchases, *approvals.definitions()))

if __name__ == "__main__":
    sys.exit(example.main())
