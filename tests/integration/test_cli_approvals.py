"""Votes of `perdure approvals` on a real engine."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from subprocess import CompletedProcess
from uuid import uuid4

import pytest

from perdure import ControlPlaneService, IngressClient, Orchestration
from perdure.approvals.messages import ApprovalStatus, DecisionReceipt
from perdure.approvals.service import ApprovalsConfig, definitions
from perdure.saga import hosting
from tests.command_line import run_perdure
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

purchases = ControlPlaneService("CliPurchases", public=True)


@purchases.main
async def buy(cp: Orchestration, item: str) -> bool:
    return await cp.await_human_approval(cp.key, timedelta(hours=1), title=f"Buy {item}")


async def test_votes_name_approval_and_state(restate):
    env = await restate.serve(purchases, *hosting.definitions(), *definitions(ApprovalsConfig()))
    opened, expected = f"order-{uuid4()}", f"early-{uuid4()}"

    async def approvals(*words: str) -> CompletedProcess[str]:
        settings = {"PERDURE_INGRESS_URL": env.ingress, "PERDURE_ADMIN_URL": env.admin, "PERDURE_ACTOR": "olga"}
        return await asyncio.to_thread(run_perdure, "approvals", *words, **settings)

    async with IngressClient(env.ingress) as ingress:
        await ingress.send(buy, "a crane", key=opened)

        async def status() -> str | None:
            shown = await approvals("show", opened, "--json")
            return shown.stdout if shown.returncode == 0 else None

        assert ApprovalStatus.model_validate_json(await eventually(status, what="the approval")).status == "open"

        for action in ("approve", "reject"):
            unknown = await approvals(action, opened[:-1])
            assert (unknown.returncode, unknown.stdout) == (1, "")
            assert "has not been opened; to vote before that, pass --early" in unknown.stderr
            assert f"did you mean '{opened}'?" in unknown.stderr
        assert (await approvals("show", opened[:-1])).stderr.endswith(f"did you mean '{opened}'?\n")

        assert (await approvals("approve", opened)).stdout == f"{opened}: approve by olga (unsigned), now approved\n"
        assert await ingress.attach(buy, key=opened) is True

        early = await approvals("approve", expected, "--early", "--json")
        receipt = DecisionReceipt.model_validate_json(early.stdout)
        assert (receipt.approval_id, receipt.action, receipt.status) == (expected, "approve", "expected")
        assert await ingress.call(buy, "a lift", key=expected) is True
