"""What a caller says of its trace, as W3C Trace Context writes it: https://www.w3.org/TR/trace-context.

OpenTelemetry's own reader is made for whatever carries headers, and costs more than the span that hangs under it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

_TRACEPARENT = re.compile(r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?[ \t]*")


def read_traceparent(headers: Mapping[str, str]) -> SpanContext | None:
    """Return the span that a request belongs to; None when its headers name none, or not as they should.

    Args:
        headers: Their names in lower case: ``traceparent``, and ``tracestate`` if there is one.
    """
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
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
