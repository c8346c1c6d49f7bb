"""The files of docs/how-to/approvals.md behave as documented."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from perdure import IngressClient, Target
from perdure.approvals.messages import DecisionRequest
from perdure.approvals.targets import reject
from perdure.engine.admin import AdminClient
from perdure.saga import hosting
from tests.examples.program import Program
from tests.support import eventually

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "approvals.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL))
run_purchase = Target("Purchases", "run", dict[str, object], bool)


@pytest.mark.restate_modes("http2")
async def test_custom_notifications_lead_to_a_decision(restate, tmp_path):
    assert list(FILES) == ["purchases.py", "approvals.py"]
    env = await restate.serve(*hosting.definitions())  # the services of `make run` that this test needs
    for name, content in FILES.items():
        here = content.replace("http://127.0.0.1:9070", env.admin).replace("http://127.0.0.1:8080", env.ingress)
        (tmp_path / name).write_text(here, encoding="utf-8")
    approvals, purchases = Program(tmp_path, "approvals"), Program(tmp_path, "purchases")
    async with AdminClient(env.admin) as admin, IngressClient(env.ingress) as ingress:
        try:
            with approvals.running(), purchases.running():
                for program in (approvals, purchases):
                    await eventually(program.ready, what="program", within=60)
                    await admin.register(program.url)
                order = {"what": "a crane", "price": 90_000, "buyer": "ada@example.com"}
                bought = asyncio.create_task(ingress.call(run_purchase, order, key="17"))

                async def told() -> bool:
                    people = ("grace@example.com", "group:finance")
                    return all(approvals.said(f"to {each}: asked: Buy a crane for 90000 EUR") for each in people)

                await eventually(told, what="notices")
                veto = DecisionRequest(actor="olga@example.com", reason="a crane?")
                await ingress.call(reject, veto, key="purchase-17")
                assert await bought is False
        finally:
            for program in (approvals, purchases):
                program.dismiss()
            for deployment in await admin.deployments():
                if str(deployment["uri"]).rstrip("/") in (approvals.url, purchases.url):
                    await admin.remove_deployment(deployment["id"])
