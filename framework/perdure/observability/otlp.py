"""Spans as OTLP: the SDK's exporter, which writes the spans of handlers in a fraction of the time.

What several spans have in common is written once and used again, since a protobuf message may be put together from
parts that were written before: its bytes are those of its fields, one after the other, in any order
(https://protobuf.dev/programming-guides/encoding). A span that has more than the usual is written by the SDK.
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

from perdure.observability.span_parts import LocalTrace, SharedAttributes, SpanSort
from perdure.observability.spans import UNSET, HandlerSpan, HandlerTracer

__all__ = ["SpanExporter", "SpanSender", "encode", "write"]

# What comes before a field's length: its number, and that it has one.
_REQUEST_RESOURCE_SPANS: Final = ExportTraceServiceRequest(resource_spans=[ResourceSpans()]).SerializeToString()[:-1]
_RESOURCE_SPANS_SCOPE_SPANS: Final = ResourceSpans(scope_spans=[ScopeSpans()]).SerializeToString()[:-1]
_SCOPE_SPANS_SPANS: Final = ScopeSpans(spans=[ProtoSpan()]).SerializeToString()[:-1]
_SPAN_ATTRIBUTES: Final = ProtoSpan(attributes=[KeyValue()]).SerializeToString()[:-1]
_ATTRIBUTE_VALUE: Final = KeyValue(value=AnyValue()).SerializeToString()[:-1]
_TEXT: Final = AnyValue(string_value="").SerializeToString()[:-1]
_SHORT: Final = 0x7F  # the longest whose length is one byte
_MEDIUM: Final = 0x3FFF  # two bytes
_SHORT_TEXT: Final = _SPAN_ATTRIBUTES + b"%c%b" + _ATTRIBUTE_VALUE + b"%c" + _TEXT + b"%c%b"
_BEFORE_TEXT: Final = len(_TEXT) + 1

_NUMBERS: Final[dict[type, str]] = {bool: "bool_value", int: "int_value", float: "double_value"}
_KINDS: Final = {kind: ProtoSpan.SpanKind.Value(f"SPAN_KIND_{kind.name}") for kind in SpanKind}
_STATUSES: Final = {code: ProtoStatus.StatusCode.Value(f"STATUS_CODE_{code.name}") for code in StatusCode}

# Fields that each span has are of fixed size: what comes before their content is what comes before a one's.
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


Written = tuple[HandlerTracer, bytes]
"""A span of a handler as it is sent, and who made it, which tells what is around it."""


class _Unusual(Exception):
    """A span has something that is left to the SDK."""


class SpanExporter(OTLPSpanExporter):
    """Sends spans by OTLP over HTTP, as OpenTelemetry's standard variables say."""

    def export(self, spans: Sequence[ReadableSpan | Written]) -> SpanExportResult:
        """Send spans.

        Args:
            spans: The SDK's, and those of handlers, written or not.
        """
        if self._shutdown:
            return SpanExportResult.FAILURE
        sent = self._client.export(encode(spans))  # tries again as the protocol has it, and logs what it gives up
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE


class SpanSender(BatchSpanProcessor):
    """Hands spans to an exporter, many at once, as the SDK does; those of handlers are written as soon as they end.

    Their parts are at hand then; half a second later each of them would have to come from memory again.
    """

    def on_end(self, span: ReadableSpan | HandlerSpan) -> None:
        """Take a span that has ended; it is sent when its trace is kept."""
        if not isinstance(span, HandlerSpan):
            super().on_end(span)
        elif span.local.is_kept:
            sent: Any = write(span) or span
            self._batch_processor.emit(sent)


def encode(spans: Sequence[ReadableSpan | HandlerSpan | Written]) -> bytes:
    """Write spans as an ``ExportTraceServiceRequest``.

    Args:
        spans: The SDK's, and those of handlers, written or not.
    """
    of_handlers: dict[HandlerTracer, list[bytes]] = {}
    others: list[Any] = []
    for span in spans:
        written = span if isinstance(span, tuple) else write(span) if isinstance(span, HandlerSpan) else None
        if written is None:
            others.append(span)
        else:
            of_handlers.setdefault(written[0], []).append(written[1])
    requests = [encode_spans(others).SerializeToString()] if others else []
    for tracer, contents in of_handlers.items():
        resource, scope = tracer.encoded = tracer.encoded or _around(tracer)
        scope_spans = _field(_RESOURCE_SPANS_SCOPE_SPANS, scope + b"".join(contents))
        requests.append(_field(_REQUEST_RESOURCE_SPANS, resource + scope_spans))
    return b"".join(requests)


def write(span: HandlerSpan) -> Written | None:
    """Write a span that has ended; None when it has more than the usual, which is left to the SDK.

    Args:
        span: The span.
    """
    if span.events or span.links or span.dropped_attributes:
        return None
    sort, shared, own, local, above = span.sort, span.shared, span.own, span.local, span.above
    if local.encoded is None:
        local.encoded = _TRACE_ID + local.trace_id.to_bytes(16, "big")
    try:
        named, common = sort.encoded, shared.encoded
        if named is None:
            named = sort.encoded = _named(sort) + _attributes(sort.attributes)
        if common is None:
            common = _shared(shared)
        for name in chain(sort.attributes, own) if own else sort.attributes:
            if name in shared or (name in own and name in sort.attributes):  # a receiver is to be told once
                named, common, own = _named(sort), b"", {**shared, **sort.attributes, **own}
                break
        facts = _attributes(own) if own else b""
    except _Unusual:
        return None
    if above is None:
        ids, flags = _ID.pack(_SPAN_ID, span.span_id), _LOCAL
    else:
        ids = _IDS.pack(_SPAN_ID, span.span_id, _PARENT_ID, above.span_id)
        flags = _REMOTE if isinstance(above, SpanContext) and above.is_remote else _LOCAL
    times = _TIMES.pack(_START, span.start_time, _END, span.end_time or 0)
    more = b"" if span.status is UNSET and local.is_plain else _status_and_state(span)
    content = b"".join((local.encoded, ids, flags, times, named, common, facts, more))
    return span.tracer, _field(_SCOPE_SPANS_SPANS, content)


def _shared(attributes: SharedAttributes) -> bytes:
    base = attributes.base
    if base is None:
        encoded = _attributes(attributes)
    else:
        encoded = (_shared(base) if base.encoded is None else base.encoded) + _attributes(attributes.more)
    attributes.encoded = encoded
    return encoded


def _around(tracer: HandlerTracer) -> tuple[bytes, bytes]:
    """Return what is around the spans of a process: its resource, and the tracer's scope."""
    empty = HandlerSpan(tracer, SpanSort(""), SharedAttributes(), LocalTrace(INVALID_SPAN_CONTEXT), 0, None, 0)
    resource_spans = encode_spans([cast("ReadableSpan", empty)]).resource_spans[0]
    scope_spans = resource_spans.scope_spans[0]
    del scope_spans.spans[:]
    scope = scope_spans.SerializeToString()
    del resource_spans.scope_spans[:]
    return resource_spans.SerializeToString(), scope


def _named(sort: SpanSort) -> bytes:
    return ProtoSpan(name=sort.name, kind=_KINDS[sort.kind]).SerializeToString()


def _status_and_state(span: HandlerSpan) -> bytes:
    """Return what most spans don't have."""
    state, status = span.local.state, span.status
    proto = ProtoSpan(trace_state=",".join(f"{key}={value}" for key, value in state.items()))
    if not status.is_unset:
        proto.status.code = _STATUSES[status.status_code]
        proto.status.message = status.description or ""
    return proto.SerializeToString()


def _attributes(attributes: Mapping[str, Any]) -> bytes:
    written = b""
    for name, value in attributes.items():
        if type(value) is str:  # most are, and told of one invocation alone
            key, around = _key(name)
            text = value.encode()
            length = len(text)
            size = around + length
            if size <= _SHORT:  # so are its parts: each length is one byte
                written += _SHORT_TEXT % (size, key, length + _BEFORE_TEXT, length, text)
            else:
                written += _field(_SPAN_ATTRIBUTES, key + _field(_ATTRIBUTE_VALUE, _field(_TEXT, text)))
        elif type(value) in _NUMBERS:
            written += _number(name, value)
        else:
            raise _Unusual
    return written


@lru_cache(maxsize=2048)  # names from code
def _key(name: str) -> tuple[bytes, int]:
    """Return an attribute's name, and the size of all that is around a short text that it has for a value."""
    key = KeyValue(key=name).SerializeToString()
    return key, len(key) + len(_ATTRIBUTE_VALUE) + 1 + _BEFORE_TEXT


@lru_cache(maxsize=2048, typed=True)  # typed, since 1 == True
def _number(name: str, value: float) -> bytes:
    written = AnyValue()
    setattr(written, _NUMBERS[type(value)], value)
    return _field(_SPAN_ATTRIBUTES, KeyValue(key=name, value=written).SerializeToString())


def _field(tag: bytes, content: bytes) -> bytes:
    """Write a field of a message that holds text, bytes or another message."""
    length = len(content)
    if length <= _SHORT:
        return b"%b%c%b" % (tag, length, content)
    if length <= _MEDIUM:  # as most spans are
        return b"%b%c%c%b" % (tag, length & _SHORT | 0x80, length >> 7, content)
    head = bytearray(tag)
    while length > _SHORT:
        head.append(length & _SHORT | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + content
