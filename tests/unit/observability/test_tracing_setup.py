"""Configuration of tracing in services and engine."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest

from perdure._runtime.sdk import HandlerInfo
from perdure.errors import ConfigurationError
from perdure.observability.activities import ActivityKind, ActivityStarted
from perdure.observability.events import Invocation
from perdure.observability.tracing import annotate, link_to, traceparent
from perdure.observability.tracing_setup import configure_tracing, engine_tracing, is_tracing, stop_tracing

ANY = "http://collector:4318"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ANY}, f"otlp+{ANY}/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{ANY}/"}, f"otlp+{ANY}/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x", "OTEL_EXPORTER_OTLP_ENDPOINT": ANY}, "otlp+http://t/x"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ANY, "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ANY, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ANY, "RESTATE_TRACING_ENDPOINT": "http://g:4317"}, "http://g:4317"),
    ],
)
def test_engine_uses_receiver_of_services(variables, expected):
    assert engine_tracing(variables) == ({} if expected is None else {"RESTATE_TRACING_ENDPOINT": expected})


def test_engine_uses_sampling_of_services():
    sampling = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
    batching = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
    settings = engine_tracing(
        {**sampling, **batching, "OTEL_EXPORTER_OTLP_ENDPOINT": ANY, "OTEL_SERVICE_NAME": "flights"}
    )
    assert settings == {**sampling, **batching, "RESTATE_TRACING_ENDPOINT": f"otlp+{ANY}/v1/traces"}
    assert engine_tracing(sampling) == {}


def test_tracing_is_off_without_endpoint(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert not configure_tracing("x")
    assert not is_tracing()
    stop_tracing(timedelta(0))  # has no effect


def test_reject_unsupported_protocol(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(
        ConfigurationError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL=grpc: unsupported protocol; set it to http/protobuf"
    ):
        configure_tracing("x")


def test_annotate_and_link_outside_of_handler():
    annotate(saga_id="x")
    link_to("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    assert traceparent() is None


def test_activities_compare_by_identity():
    invocation = Invocation("inv_1", HandlerInfo("S", "h", "service"), None)
    one, other = (ActivityStarted(invocation, ActivityKind.CALL, "S/x") for _ in range(2))
    assert one != other
    assert len({one, other}) == 2


def test_stop_times_out_with_silent_receiver():
    program = """
import os, socket, time
from datetime import timedelta
silent = socket.create_server(("127.0.0.1", 0))
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
from opentelemetry import trace
from perdure.observability.tracing_setup import configure_tracing, stop_tracing
assert configure_tracing("x")
trace.get_tracer("x").start_span("y").end()
began = time.monotonic()
stop_tracing(timedelta(seconds=0.2))
print(time.monotonic() - began, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert 0.1 < float(done.stdout) < 9  # without the limit, the exporter waits for ten seconds
