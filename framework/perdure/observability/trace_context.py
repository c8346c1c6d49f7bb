"""Parser of W3C Trace Context headers (https://www.w3.org/TR/trace-context).

OpenTelemetry's generic propagator costs more than the span that is created with its result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

_TRACEPARENT = re.compile(r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?[ \t]*")


def read_traceparent(headers: Mapping[str, str]) -> SpanContext | None:
    """Return the parent span of a request, from headers with lower-case names; None if missing or invalid."""
    match = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more):
        return None
    state = headers.get("tracestate")
    context = SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=TraceState.from_header([state]) if state else None,
    )
    return context if context.is_valid else None
