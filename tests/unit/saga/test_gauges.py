"""Gauges of sagas."""

from __future__ import annotations

from typing import Any

from perdure.engine.admin import AdminClient
from perdure.saga import gauges
from perdure.saga.gauges import SagaSampler


async def test_slow_samples_are_repeated(monkeypatch):
    clock, sampled = [100.0], []

    async def sample(*_: Any) -> list[Any]:
        clock[0] += 0.2
        sampled.append(clock[0])
        return list(sampled)

    monkeypatch.setattr(gauges, "sample_sagas", sample)
    monkeypatch.setattr(gauges.time, "monotonic", lambda: clock[0])
    sampler, admin = SagaSampler(), AdminClient("http://admin.test")
    first = await sampler(admin, None)
    clock[0] += 9.9
    assert await sampler(admin, None) == first
    clock[0] += 0.2
    assert len(await sampler(admin, None)) == 2
