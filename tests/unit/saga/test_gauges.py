"""Gauges of sagas."""

from __future__ import annotations

from typing import Any

import httpx

from perdure.alerts.service import StoredConditions
from perdure.engine import polling
from perdure.engine.admin import AdminClient
from perdure.observability.metrics import OPEN_SAGAS
from perdure.saga import gauges
from perdure.saga.gauges import SagaSampler


async def test_slow_samples_are_repeated(monkeypatch):
    clock, counted = [100.0], []

    async def count(_: AdminClient) -> list[dict[str, Any]]:
        clock[0] += 0.2
        counted.append({"service": "Trips", "phase": "running", "number": len(counted)})
        return counted[-1:]

    monkeypatch.setattr(gauges, "_count_open", count)
    monkeypatch.setattr(polling.time, "monotonic", lambda: clock[0])
    empty = httpx.MockTransport(lambda _: httpx.Response(200, json={"rows": []}))
    admin = AdminClient("http://admin.test", http=httpx.AsyncClient(transport=empty))
    sampler = SagaSampler(StoredConditions(0.01, []))
    for _ in range(3):  # those of a start are not limited
        last = await sampler(admin, None)
    clock[0] += 59
    assert await sampler(admin, None) == last
    clock[0] += 2
    assert (await sampler(admin, None))[0] == (OPEN_SAGAS, 3, {"service": "Trips", "phase": "running"})
