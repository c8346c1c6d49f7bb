"""Gauges of sagas."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from perdure.alerts.service import StoredConditions
from perdure.engine import polling
from perdure.engine.admin import AdminClient
from perdure.observability.metrics import DEAD_LETTERS, OPEN_SAGAS
from perdure.saga import gauges
from perdure.saga.gauges import SagaSampler, sample_sagas
from perdure.saga.messages import DeadLetter

LETTER = DeadLetter(
    id="trip-1/2",
    saga_id="trip-1",
    service="Trips",
    step="hotel",
    position=2,
    compensation="TripsCompensations/cancel_hotel",
    payload={},
    error="no",
    signature="no",
    reason="declined",
    attempts=5,
    redriven=0,
    since=datetime(2030, 1, 1, tzinfo=UTC),
).model_dump_json()
OF_ANOTHER_VERSION = '{"id": "trip-2/1"}'


def engine(wanted: str, *entries: str) -> AdminClient:
    """Return an engine that answers queries with a text with state entries, and other queries with nothing."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)["query"]
        rows: list[Any] = [{"value": each.encode().hex()} for each in entries] if wanted in asked else []
        return httpx.Response(200, json={"rows": rows})

    return AdminClient("http://admin.test", http=httpx.AsyncClient(transport=httpx.MockTransport(answer)))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


async def test_count_unreadable_dead_letters(caplog):
    found = await sample_sagas(
        engine(
            "as value from state where service_name = 'DeadLetterIndex'", LETTER, OF_ANOTHER_VERSION, OF_ANOTHER_VERSION
        ),
        None,
    )
    open_letters = {labels["service"]: number for gauge, number, labels in found if gauge is DEAD_LETTERS}
    assert open_letters == {"Trips": 1, "unknown": 2}
    assert warnings(caplog) == ["saga.gauges.unreadable number=2"], "one line per scan"


async def test_slow_samples_are_repeated(monkeypatch):
    clock, counted = [100.0], []

    async def count(_: AdminClient) -> list[dict[str, Any]]:
        clock[0] += 0.2
        counted.append({"service": "Trips", "phase": "running", "number": len(counted)})
        return counted[-1:]

    monkeypatch.setattr(gauges, "_count_open", count)
    monkeypatch.setattr(polling.time, "monotonic", lambda: clock[0])
    sampler, admin = SagaSampler(StoredConditions(0.01, [])), engine("")
    first = await sampler(admin, None)
    clock[0] += 59
    assert await sampler(admin, None) == first
    clock[0] += 2
    assert (await sampler(admin, None))[0] == (OPEN_SAGAS, 1, {"service": "Trips", "phase": "running"})
