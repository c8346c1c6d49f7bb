"""OTLP exporter that encodes the spans of handlers in a fraction of the SDK's time.

A protobuf message is the concatenation of its fields in any order (https://protobuf.dev/programming-guides/encoding),
so parts that several spans share are encoded once. The SDK encodes spans with events, links or other rare content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from struct import Struct
from typing import Any, Final, cast

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, SpanFlags
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status as ProtoStatus
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, SpanKind, StatusCode

from perdure._runtime.plain_text import display_name, message_text
from perdure.observability.spans import (
    UNSET_STATUS,
    HandlerSpan,
    HandlerTracer,
    SharedAttributes,
    SpanType,
    TraceInfo,
)

# Tags of length-delimited fields.
_REQUEST_RESOURCE_SPANS: Final = ExportTraceServiceRequest(resource_spans=[ResourceSpans()]).SerializeToString()[:-1]
_RESOURCE_SPANS_SCOPE_SPANS: Final = ResourceSpans(scope_spans=[ScopeSpans()]).SerializeToString()[:-1]
_SCOPE_SPANS_SPANS: Final = ScopeSpans(spans=[ProtoSpan()]).SerializeToString()[:-1]
_SPAN_ATTRIBUTES: Final = ProtoSpan(attributes=[KeyValue()]).SerializeToString()[:-1]
_ATTRIBUTE_VALUE: Final = KeyValue(value=AnyValue()).SerializeToString()[:-1]
_TEXT: Final = AnyValue(string_value="").SerializeToString()[:-1]
_SHORT: Final = 0x7F  # the longest content with a length of one byte
_MEDIUM: Final = 0x3FFF  # two bytes
_SHORT_TEXT: Final = _SPAN_ATTRIBUTES + b"%c%b" + _ATTRIBUTE_VALUE + b"%c" + _TEXT + b"%c%b"
_TEXT_OVERHEAD: Final = len(_TEXT) + 1

_NUMBERS: Final[dict[type, str]] = {bool: "bool_value", int: "int_value", float: "double_value"}
_KINDS: Final = {kind: ProtoSpan.SpanKind.Value(f"SPAN_KIND_{kind.name}") for kind in SpanKind}
_STATUSES: Final = {code: ProtoStatus.StatusCode.Value(f"STATUS_CODE_{code.name}") for code in StatusCode}

# Tags of the fields that all spans have, which have a fixed size.
_TRACE_ID: Final = ProtoSpan(trace_id=bytes(16)).SerializeToString()[:-16]
_SPAN_ID: Final = ProtoSpan(span_id=bytes(8)).SerializeToString()[:-8]
_PARENT_ID: Final = ProtoSpan(parent_span_id=bytes(8)).SerializeToString()[:-8]
_START: Final = ProtoSpan(start_time_unix_nano=1).SerializeToString()[:-8]
_END: Final = ProtoSpan(end_time_unix_nano=1).SerializeToString()[:-8]
_ID: Final = Struct(f">{len(_SPAN_ID)}sQ")
_IDS: Final = Struct(f">{len(_SPAN_ID)}sQ{len(_PARENT_ID)}sQ")
_TIMES: Final = Struct(f"<{len(_START)}sQ{len(_END)}sQ")
_LOCAL: Final = ProtoSpan(flags=SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK).SerializeToString()
_REMOTE: Final = ProtoSpan(
    flags=SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
).SerializeToString()


EncodedSpan = tuple[HandlerTracer, bytes]
"""The encoded span of a handler, and its tracer, which determines resource and scope."""


class _UnsupportedValue(Exception):
    """An attribute value that only the SDK encodes."""


class SpanExporter(OTLPSpanExporter):
    """Exports spans by OTLP over HTTP, configured by OpenTelemetry's standard variables."""

    def export(self, spans: Sequence[ReadableSpan | EncodedSpan]) -> SpanExportResult:
        """Export spans of the SDK and of handlers."""
        if self._shutdown:
            return SpanExportResult.FAILURE
        result = self._client.export(encode_request(spans))  # retries, and logs a final failure
        return SpanExportResult.SUCCESS if result.success else SpanExportResult.FAILURE


class HandlerSpanProcessor(BatchSpanProcessor):
    """The SDK's batch processor, which encodes the spans of handlers when they end, while their data is cached."""

    def on_end(self, span: ReadableSpan | HandlerSpan) -> None:
        """Queue a sampled span for export."""
        if not isinstance(span, HandlerSpan):
            super().on_end(span)
        elif span.trace_info.is_sampled:
            queued: Any = encode_span(span) or span
            self._batch_processor.emit(queued)


def encode_request(spans: Sequence[ReadableSpan | HandlerSpan | EncodedSpan]) -> bytes:
    """Encode spans of the SDK and of handlers as an ``ExportTraceServiceRequest``."""
    by_tracer: dict[HandlerTracer, list[bytes]] = {}
    others: list[Any] = []
    for span in spans:
        encoded = span if isinstance(span, tuple) else encode_span(span) if isinstance(span, HandlerSpan) else None
        if encoded is None:
            others.append(span)
        else:
            by_tracer.setdefault(encoded[0], []).append(encoded[1])
    requests = [encode_spans(others).SerializeToString()] if others else []
    for tracer, contents in by_tracer.items():
        resource, scope = tracer.encoded = tracer.encoded or _encode_resource_and_scope(tracer)
        scope_spans = _encode_field(_RESOURCE_SPANS_SCOPE_SPANS, scope + b"".join(contents))
        requests.append(_encode_field(_REQUEST_RESOURCE_SPANS, resource + scope_spans))
    return b"".join(requests)


def encode_span(span: HandlerSpan) -> EncodedSpan | None:
    """Encode a span that has ended; return None if only the SDK can encode it."""
    if span.events or span.links or span.dropped_attributes:
        return None
    type_, shared, own, trace_info, parent = (
        span.type,
        span.shared,
        span.own_attributes,
        span.trace_info,
        span.parent_span,
    )
    if trace_info.encoded is None:
        trace_info.encoded = _TRACE_ID + trace_info.trace_id.to_bytes(16, "big")
    try:
        type_part, shared_part = type_.encoded, shared.encoded
        if type_part is None:
            type_part = type_.encoded = _encode_name(type_) + _encode_attributes(type_.attributes)
        if shared_part is None:
            shared_part = _encode_shared(shared)
        for name in chain(type_.attributes, own) if own else type_.attributes:
            if name in shared or (name in own and name in type_.attributes):  # duplicate names are invalid
                type_part, shared_part, own = _encode_name(type_), b"", {**shared, **type_.attributes, **own}
                break
        own_part = _encode_attributes(own) if own else b""
    except _UnsupportedValue:
        return None
    if parent is None:
        ids, flags = _ID.pack(_SPAN_ID, span.span_id), _LOCAL
    else:
        ids = _IDS.pack(_SPAN_ID, span.span_id, _PARENT_ID, parent.span_id)
        flags = _REMOTE if isinstance(parent, SpanContext) and parent.is_remote else _LOCAL
    times = _TIMES.pack(_START, span.start_time, _END, span.end_time or 0)
    has_more = span.status is not UNSET_STATUS or trace_info.has_state
    status = _encode_status_and_state(span) if has_more else b""
    content = b"".join((trace_info.encoded, ids, flags, times, type_part, shared_part, own_part, status))
    return span.tracer, _encode_field(_SCOPE_SPANS_SPANS, content)


def _encode_shared(attributes: SharedAttributes) -> bytes:
    base = attributes.base
    if base is None:
        encoded = _encode_attributes(attributes)
    else:
        encoded_base = _encode_shared(base) if base.encoded is None else base.encoded
        encoded = encoded_base + _encode_attributes(attributes.added)
    attributes.encoded = encoded
    return encoded


def _encode_resource_and_scope(tracer: HandlerTracer) -> tuple[bytes, bytes]:
    empty = HandlerSpan(tracer, SpanType(""), SharedAttributes(), TraceInfo(INVALID_SPAN_CONTEXT), 0, None, 0)
    resource_spans = encode_spans([cast("ReadableSpan", empty)]).resource_spans[0]
    scope_spans = resource_spans.scope_spans[0]
    del scope_spans.spans[:]
    scope = scope_spans.SerializeToString()
    del resource_spans.scope_spans[:]
    return resource_spans.SerializeToString(), scope


def _encode_name(type_: SpanType) -> bytes:
    return ProtoSpan(name=type_.name, kind=_KINDS[type_.kind]).SerializeToString()


def _encode_status_and_state(span: HandlerSpan) -> bytes:
    state, status = span.trace_info.state, span.status
    proto = ProtoSpan(trace_state=",".join(f"{key}={value}" for key, value in state.items()))
    if not status.is_unset:
        proto.status.code = _STATUSES[status.status_code]
        proto.status.message = status.description or ""
    return proto.SerializeToString()


def _encode_attributes(attributes: Mapping[str, Any]) -> bytes:
    encoded = b""
    for name, value in attributes.items():
        if type(value) is str:  # the most frequent type; values are rarely repeated
            key, overhead = _encode_key(name)
            text = message_text(value).encode()
            length = len(text)
            size = overhead + length
            if size <= _SHORT:  # all lengths are one byte
                encoded += _SHORT_TEXT % (size, key, length + _TEXT_OVERHEAD, length, text)
            else:
                encoded += _encode_field(
                    _SPAN_ATTRIBUTES, key + _encode_field(_ATTRIBUTE_VALUE, _encode_field(_TEXT, text))
                )
        elif type(value) in _NUMBERS:
            encoded += _encode_number(name, value)
        else:
            raise _UnsupportedValue
    return encoded


@lru_cache(maxsize=2048)  # names from code
def _encode_key(name: str) -> tuple[bytes, int]:
    """Return an attribute's encoded name, and the size of a short text attribute without its text."""
    key = KeyValue(key=display_name(name)).SerializeToString()
    return key, len(key) + len(_ATTRIBUTE_VALUE) + 1 + _TEXT_OVERHEAD


@lru_cache(maxsize=2048, typed=True)  # typed, since 1 == True
def _encode_number(name: str, value: float) -> bytes:
    proto = AnyValue()
    setattr(proto, _NUMBERS[type(value)], value)
    return _encode_field(_SPAN_ATTRIBUTES, KeyValue(key=display_name(name), value=proto).SerializeToString())


def _encode_field(tag: bytes, content: bytes) -> bytes:
    """Encode a length-delimited field."""
    length = len(content)
    if length <= _SHORT:
        return b"%b%c%b" % (tag, length, content)
    if length <= _MEDIUM:  # most spans
        return b"%b%c%c%b" % (tag, length & _SHORT | 0x80, length >> 7, content)
    head = bytearray(tag)
    while length > _SHORT:
        head.append(length & _SHORT | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + content
