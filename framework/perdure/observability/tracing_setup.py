"""Where a process's spans go: to an OTLP receiver, by OpenTelemetry's standard variables.

========================================= ============================================================================
OTEL_EXPORTER_OTLP_ENDPOINT               the receiver's HTTP address, for example ``http://127.0.0.1:4318``
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT        the same for spans alone, with its path ``/v1/traces``
OTEL_SERVICE_NAME                         the process's name in traces
OTEL_TRACES_SAMPLER, …_SAMPLER_ARG        how many traces that begin here are kept; the engine's own choice is followed
OTEL_SPAN_…_LIMIT, OTEL_ATTRIBUTE_…_LIMIT how much a span holds, and how long a fact may be; spans cost more with these
OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER   ``true``, ``none``: no spans
========================================= ============================================================================

The engine is told where its own spans go by ``RESTATE_TRACING_ENDPOINT``. Both must go to the same place, or traces
have holes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import ClassVar, Final

from perdure.errors import ConfigurationError

__all__ = ["configure_tracing", "sends_spans", "stop_tracing"]

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_SHARED: Final = ("OTEL_TRACES_SAMPLER", "OTEL_BSP_")


def configure_tracing(service: str) -> bool:
    """Send this process's spans to where OpenTelemetry's standard variables say; does nothing when they say nothing.

    Args:
        service: The process's name in traces, unless ``OTEL_SERVICE_NAME`` says another.

    Returns:
        Whether spans are sent. Call `stop_tracing` before the process ends.

    Raises:
        ConfigurationError: The variables ask for something that is not there.
    """
    endpoint = _endpoint(os.environ)
    if endpoint is None:
        return False
    protocol = next((name for name in _PROTOCOLS if os.environ.get(name)), None)
    if protocol is not None and os.environ[protocol] != _PROTOCOL:
        raise ConfigurationError(
            f"{protocol}={os.environ[protocol]}: spans are sent by {_PROTOCOL} only; set it to that, and the "
            f"endpoint, which is {endpoint} now, to the receiver's HTTP port, usually 4318"
        )
    _send_spans(service)
    return True


class _Sending:
    """What was set up in this process, so that it can be ended."""

    stops: ClassVar[list[Callable[[], None]]] = []


def _send_spans(service: str) -> None:
    if _Sending.stops:
        return
    # Loading these takes a tenth of a service's start, and only processes that send spans need them.
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

    from perdure.observability.otlp import SpanExporter, SpanSender  # noqa: PLC0415
    from perdure.observability.spans import HandlerTracerProvider, TraceIds  # noqa: PLC0415
    from perdure.observability.tracing import trace_handlers  # noqa: PLC0415

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or service})
    try:
        provider = HandlerTracerProvider(resource, TraceIds())
    except ValueError as error:
        raise ConfigurationError(f"OpenTelemetry's settings can't be used: {error}") from error
    provider.add_span_processor(SpanSender(SpanExporter()))
    trace.set_tracer_provider(provider)
    httpx = HTTPXClientInstrumentor()
    httpx.instrument()
    _Sending.stops = [trace_handlers(), httpx.uninstrument, provider.shutdown]


def engine_tracing(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings by which an engine sends its spans as services with an environment do.

    To the same place, at the same pace, and of the same part of the traces.

    Args:
        environment: The services' variables.

    Returns:
        Variables of restate-server; none when the services send no spans.
    """
    chosen = environment.get("RESTATE_TRACING_ENDPOINT")
    if not chosen and (endpoint := _endpoint(environment)):
        chosen = f"otlp+{endpoint}"
    if not chosen:
        return {}
    shared = {name: value for name, value in environment.items() if name.startswith(_SHARED)}
    return {**shared, "RESTATE_TRACING_ENDPOINT": chosen}


def _endpoint(environment: Mapping[str, str]) -> str | None:
    """Return the receiver's address with its path, or None when no spans are to be sent."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return None
    for_spans, for_all = (environment.get(name, "") for name in _ENDPOINTS)
    return for_spans or (f"{for_all.rstrip('/')}/v1/traces" if for_all else None)


def sends_spans() -> bool:
    """Tell if this process sends spans, so that it is worth the while to instrument a library."""
    return bool(_Sending.stops)


def stop_tracing(within: timedelta) -> None:
    """Send what has not been sent yet, and stop. Spans that end afterwards are lost.

    Args:
        within: How long that may take. A receiver that doesn't answer must not hold up the process's end.
    """
    stops, _Sending.stops = _Sending.stops, []
    if not stops:
        return

    def stop() -> None:
        for each in stops:
            each()

    sending = threading.Thread(target=stop, name="perdure-stop-tracing", daemon=True)
    sending.start()
    sending.join(within.total_seconds())
