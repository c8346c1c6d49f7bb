"""Confidentiality of the webhook's URL, which may contain a secret."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from perdure.alerts import service as alerts_module
from perdure.testing import Restate
from tests.integration.alert_scene import ADDRESSEE, Start, scenes_of

pytestmark = pytest.mark.restate_modes("http2")


@pytest.fixture
async def scene(restate: Restate) -> AsyncIterator[Start]:
    async with scenes_of(restate) as start:
        yield start


async def test_log_omits_webhook_url(scene, monkeypatch, caplog):
    monkeypatch.setattr(alerts_module, "_SEND_FOR", timedelta(seconds=1))
    on = await scene(lambda _: 500)
    paused = await on.ingress.send(on.patient.target())
    await on.until_detected(f"paused/{paused}")
    await on.scan()
    await on.notified(0)
    said = [each.getMessage() for each in caplog.records if "reconciler.webhook_failed" in each.getMessage()]
    (line,) = (each for each in said if f"paused/{paused}" in each)
    assert "the webhook returned 500" in line
    assert ADDRESSEE not in caplog.text


async def test_spans_omit_webhook_url(scene):
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    httpx_spans = HTTPXClientInstrumentor()
    httpx_spans.instrument(tracer_provider=provider)
    try:
        on = await scene()
        paused = await on.ingress.send(on.patient.target())
        await on.until_detected(f"paused/{paused}")
        await on.scan()
        await on.notified(1)
    finally:
        httpx_spans.uninstrument()
    attributes = [str(span.attributes) for span in spans.get_finished_spans()]
    assert any(on.admin.url in each for each in attributes)  # httpx creates spans
    assert not any(ADDRESSEE in each for each in attributes)
