"""Export of a process's spans to an OTLP receiver, configured by OpenTelemetry's standard variables.

========================================= ============================================================================
OTEL_EXPORTER_OTLP_ENDPOINT               HTTP address of the receiver, for example ``http://127.0.0.1:4318``
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT        address for spans only, with the path ``/v1/traces``
OTEL_SERVICE_NAME                         name of the process in traces
OTEL_TRACES_SAMPLER, …_SAMPLER_ARG        sampling of traces that start here; traces of the engine keep its decision
OTEL_SPAN_…_LIMIT, OTEL_ATTRIBUTE_…_LIMIT limits of spans and attributes; setting them makes spans slower
OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER   ``true`` and ``none`` disable tracing
========================================= ============================================================================

``RESTATE_TRACING_ENDPOINT`` configures the engine. Use the same receiver for both, or traces are incomplete.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import ClassVar, Final

from perdure.errors import ConfigurationError
from perdure.observability.tracing import trace_handlers

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_SHARED: Final = ("OTEL_TRACES_SAMPLER", "OTEL_BSP_")


def configure_tracing(service: str) -> bool:
    """Start tracing if OpenTelemetry's standard variables name a receiver, and return whether they do.

    Call `stop_tracing` before the process ends.

    Args:
        service: The name of the process in traces, unless ``OTEL_SERVICE_NAME`` is set.

    Raises:
        ConfigurationError: The variables have unsupported values.
    """
    endpoint = _endpoint(os.environ)
    if endpoint is None:
        return False
    protocol = next((name for name in _PROTOCOLS if os.environ.get(name)), None)
    if protocol is not None and os.environ[protocol] != _PROTOCOL:
        raise ConfigurationError(
            f"{protocol}={os.environ[protocol]}: unsupported protocol; set it to {_PROTOCOL}, and the endpoint "
            f"(now {endpoint}) to the receiver's HTTP port, usually 4318"
        )
    _start_tracing(service)
    return True


class _Tracing:
    """Callbacks that stop the tracing of this process."""

    stops: ClassVar[list[Callable[[], None]]] = []


def _start_tracing(service: str) -> None:
    if _Tracing.stops:
        return
    # Loading these takes a tenth of a service's start, and only processes that send spans need them.
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

    from perdure.observability.otlp import HandlerSpanProcessor, SpanExporter  # noqa: PLC0415
    from perdure.observability.spans import HandlerTracerProvider, TraceIds  # noqa: PLC0415

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or service})
    try:
        provider = HandlerTracerProvider(resource, TraceIds())
    except ValueError as error:
        raise ConfigurationError(f"invalid OpenTelemetry settings: {error}") from error
    provider.add_span_processor(HandlerSpanProcessor(SpanExporter()))
    trace.set_tracer_provider(provider)
    httpx = HTTPXClientInstrumentor()
    httpx.instrument()
    _Tracing.stops = [trace_handlers(), httpx.uninstrument, provider.shutdown]


def engine_tracing(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of restate-server for the receiver, sampling and batching of the services' environment."""
    engine_endpoint = environment.get("RESTATE_TRACING_ENDPOINT")
    if not engine_endpoint and (endpoint := _endpoint(environment)):
        engine_endpoint = f"otlp+{endpoint}"
    if not engine_endpoint:
        return {}
    shared = {name: value for name, value in environment.items() if name.startswith(_SHARED)}
    return {**shared, "RESTATE_TRACING_ENDPOINT": engine_endpoint}


def _endpoint(environment: Mapping[str, str]) -> str | None:
    """Return the receiver's URL; None if tracing is disabled."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return None
    traces, common = (environment.get(name, "") for name in _ENDPOINTS)
    return traces or (f"{common.rstrip('/')}/v1/traces" if common else None)


def is_tracing() -> bool:
    """Return whether tracing has started, so that libraries should be instrumented."""
    return bool(_Tracing.stops)


def stop_tracing(timeout: timedelta) -> None:
    """Export the remaining spans and stop tracing, within a timeout in case the receiver does not answer."""
    stops, _Tracing.stops = _Tracing.stops, []
    if not stops:
        return

    def stop() -> None:
        for each in stops:
            each()

    thread = threading.Thread(target=stop, name="perdure-stop-tracing", daemon=True)
    thread.start()
    thread.join(timeout.total_seconds())
