"""Gauges of approvals."""

from __future__ import annotations

import httpx

from perdure.approvals.reconciler import count_approvals
from perdure.engine.admin import AdminClient
from perdure.observability.metrics import OPEN_APPROVALS


def answer(request: httpx.Request) -> httpx.Response:
    rows = [{"value": b"{}".hex()}] * 2 if b"'Approvals'" in request.content else []
    return httpx.Response(200, json={"rows": rows})


async def test_count_unreadable_approvals(caplog):
    admin = AdminClient("http://admin.test", http=httpx.AsyncClient(transport=httpx.MockTransport(answer)))
    found = await count_approvals(admin, None)
    assert [number for gauge, number, _ in found if gauge is OPEN_APPROVALS] == [2]
    assert [record.getMessage() for record in caplog.records] == ["approvals.gauges.unreadable number=2"]
