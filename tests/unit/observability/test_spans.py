"""Spans of handlers, compared with OpenTelemetry's API and SDK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from perdure.observability.otlp import encode_request, encode_span
from perdure.observability.spans import HandlerSpan, HandlerTracerProvider, SharedAttributes, SpanType
from perdure.observability.trace_context import read_traceparent

Tracing = tuple[Tracer, InMemorySpanExporter]


def provider() -> HandlerTracerProvider:
    return HandlerTracerProvider(Resource.create({"service.name": "x"}), RandomIdGenerator())


@pytest.fixture
def tracing() -> Iterator[Tracing]:
    exporter, traces = InMemorySpanExporter(), provider()
    traces.add_span_processor(SimpleSpanProcessor(exporter))
    yield traces.get_tracer("perdure"), exporter
    traces.shutdown()


def under(span_context: SpanContext) -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(span_context), Context())


def sent(flags: int, state: TraceState | None = None) -> SpanContext:
    return SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)


# --- the API ----------------------------------------------------------------------------------------------------------


class RecordingProcessor(SpanProcessor):
    """Adds an attribute to each span at its start, and records ended spans."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("processed", value=True)

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span.name)


@pytest.mark.parametrize("tracer", ["perdure", "httpx"])
def test_custom_processor_sees_start_and_end(tracing, tracer):
    _, exporter = tracing
    processor, traces = RecordingProcessor(), provider()
    traces.add_span_processor(processor)
    traces.add_span_processor(SimpleSpanProcessor(exporter))
    with traces.get_tracer(tracer).start_as_current_span("outer"):
        traces.get_tracer(tracer).start_span("inner").end()
    traces.shutdown()
    assert processor.ended == ["inner", "outer"]
    assert [span.attributes["processed"] for span in exporter.get_finished_spans()] == [True, True]


def test_spans_continue_remote_trace(tracing: Tracing) -> None:
    tracer, exporter = tracing
    shared = SharedAttributes({"perdure.service": "S"})
    with tracer.start_as_current_span("attempt", under(sent(1)), SpanKind.SERVER, shared) as attempt:
        trace.get_current_span().set_attribute("mine", 1)  # as user code does
        with tracer.start_as_current_span("run", attributes=shared):
            pass
    run, first = exporter.get_finished_spans()
    assert (first.name, first.kind, first.attributes) == (
        "attempt",
        SpanKind.SERVER,
        {"perdure.service": "S", "mine": 1},
    )
    assert first.parent is not None
    assert (first.parent.span_id, first.parent.is_remote) == (0xDEF, True)
    assert run.parent == attempt.get_span_context()
    assert run.attributes == {"perdure.service": "S"}
    assert attempt.get_span_context().trace_id == 0xABC
    assert run.start_time is not None
    assert run.end_time is not None
    assert run.start_time <= run.end_time


def test_unsampled_trace_has_no_spans(tracing: Tracing) -> None:
    tracer, exporter = tracing
    with tracer.start_as_current_span("attempt", under(sent(0))) as attempt:
        assert not attempt.is_recording()
        assert attempt.get_span_context().trace_id == 0xABC  # propagated to called services
        tracer.start_span("run").end()
    assert exporter.get_finished_spans() == ()


def test_sampler_decides_on_root_span() -> None:
    traces = HandlerTracerProvider(Resource.create({}), RandomIdGenerator(), ALWAYS_OFF)
    assert not traces.get_tracer("perdure").start_span("attempt", Context()).is_recording()
    assert provider().get_tracer("perdure").start_span("attempt", Context()).is_recording()


def test_other_tracers_use_sdk(tracing: Tracing) -> None:
    traces = provider()
    assert not isinstance(traces.get_tracer("httpx").start_span("GET"), HandlerSpan)
    assert isinstance(traces.get_tracer("perdure").start_span("run"), HandlerSpan)


def test_ended_span_is_immutable(tracing: Tracing) -> None:
    tracer, exporter = tracing
    span = tracer.start_span("run", links=[trace.Link(sent(1))])
    span.set_status(StatusCode.OK)
    span.set_status(StatusCode.ERROR, "ignored, since OK is final")
    span.end(5)
    span.end(6)
    span.set_attribute("late", 1)
    span.set_attributes({"late": 1})
    span.add_event("late")
    span.add_link(sent(1))
    span.update_name("late")
    span.set_status(Status(StatusCode.ERROR))
    assert not span.is_recording()
    (only,) = exporter.get_finished_spans()
    assert (only.name, only.attributes, only.events, len(only.links)) == ("run", {}, (), 1)
    assert (only.end_time, only.status.status_code) == (5, StatusCode.OK)


LIMITS = {
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "4",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "2",
    "OTEL_SPAN_EVENT_COUNT_LIMIT": "1",
    "OTEL_SPAN_LINK_COUNT_LIMIT": "1",
}


@pytest.mark.parametrize("variable", LIMITS)
def test_custom_limits_apply(monkeypatch, variable):
    monkeypatch.setenv(variable, LIMITS[variable])
    traces, exporter = provider(), InMemorySpanExporter()
    traces.add_span_processor(SimpleSpanProcessor(exporter))
    spans, others = ([traces.get_tracer(name).start_span("x") for _ in range(2)] for name in ("perdure", "another"))
    for span in (*spans, *others):
        fill(span, 3)
        span.end()
    held = [sizes(each) for each in exporter.get_finished_spans()]
    assert len(held) == 4
    assert held == [held[-1]] * 4
    assert held[0] != (3, 3, 3, 26)
    traces.shutdown()


def test_default_limits_apply(tracing: Tracing) -> None:
    tracer, exporter = tracing
    spans = [
        tracer.start_span("x", attributes=SharedAttributes(shared="s")),
        provider().get_tracer("another").start_span("x", attributes={"shared": "s"}),
    ]
    for span in spans:
        fill(span, 200)
        span.end()
    (own,), reference = exporter.get_finished_spans(), spans[1]
    assert sizes(own)[:3] == sizes(reference)[:3] == (128, 128, 128)
    assert (own.dropped_attributes, own.dropped_events, own.dropped_links) == (73, 72, 72)
    assert own.events[-1].name == "event 199"
    assert "attribute 199" in own.attributes
    (written,) = encode_spans([own]).resource_spans[0].scope_spans[0].spans
    assert (
        ExportTraceServiceRequest.FromString(encode_request([own])).resource_spans[0].scope_spans[0].spans[0] == written
    )
    assert written.dropped_attributes_count == 73


def fill(span: trace.Span, number: int) -> None:
    for each in range(number):
        span.set_attribute(f"attribute {each}", "abcdefghijklmnopqrstuvwxyz")
        span.add_event(f"event {each}")
        span.add_link(sent(1))


def sizes(span: Any) -> tuple[int, int, int, int]:
    longest = max(len(str(value)) for value in span.attributes.values())
    return len(span.attributes), len(span.events), len(span.links), longest


def test_exception_event_has_no_stack_trace(tracing: Tracing) -> None:
    tracer, exporter = tracing
    with pytest.raises(OSError, match="gone"), tracer.start_as_current_span("run"):
        raise OSError("gone")
    (span,) = exporter.get_finished_spans()
    (event,) = span.events
    assert dict(event.attributes or {}) == {
        "exception.type": "OSError",
        "exception.message": "gone",
        "exception.escaped": "False",
    }
    assert span.status.status_code is StatusCode.ERROR


# --- encoding ---------------------------------------------------------------------------------------------------------

names = st.text(max_size=200)  # more than 127 bytes need a length of two bytes
plain: st.SearchStrategy[Any] = names | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
keys = st.text(min_size=1, max_size=20)
states = st.sampled_from([None, TraceState([("vendor", "1"), ("other", "2")])])
statuses = st.sampled_from([None, Status(StatusCode.OK), Status(StatusCode.ERROR, "no seat"), Status(StatusCode.ERROR)])


@given(
    st.lists(
        st.tuples(
            names,
            st.sampled_from(list(SpanKind)),
            st.dictionaries(keys, plain, max_size=4),
            st.dictionaries(keys, plain | st.lists(names, max_size=2), max_size=2),
            st.dictionaries(keys, plain, max_size=2),
            st.dictionaries(keys, plain | st.lists(names, max_size=2), max_size=4),
            states,
            statuses,
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_encoding_matches_sdk(cases: list[tuple[Any, ...]]) -> None:
    traces = provider()
    tracer = traces.get_tracer("perdure")
    spans: list[Any] = []
    for name, kind, shared_attributes, added, type_attributes, own, state, status, has_more in cases:
        shared = SharedAttributes(shared_attributes).extended(added)
        for context in (under(sent(1, state)), Context()):
            with tracer.start_as_current_span(name, context, kind, shared) as outer:
                outer.set_attributes(own)
                if status is not None:
                    outer.set_status(status)
                if has_more:
                    outer.add_event("an event", {"a": 1})
                    outer.add_link(sent(1))
                inner = tracer.start_span(name, None, kind, own)  # own attributes, not shared ones
                inner.end()
                assert isinstance(outer, HandlerSpan)
                child = outer.start_child(SpanType(name, kind, type_attributes), shared)
                child.set_attributes(own)
                child.end()
            other = traces.get_tracer("httpx").start_span("GET")
            other.end()
            spans += [outer, inner, child, other]
    assert by_id(
        encode_request([encode_span(span) or span for span in spans if isinstance(span, HandlerSpan)])
    ) == by_id(encode_request([span for span in spans if isinstance(span, HandlerSpan)]))
    assert by_id(encode_request(spans)) == by_id(encode_spans(spans).SerializeToString())


@pytest.mark.parametrize("text", ["caf\udce9", "\x1b[2J\0", "x" * 1_000_000])
def test_encode_odd_texts(text: str) -> None:
    traces = provider()
    tracer = traces.get_tracer("perdure")
    for has_event in (False, True):
        with tracer.start_as_current_span(text, Context()) as span:
            span.set_attributes({"text": text, text: [text]} if has_event else {"text": text, text: 1})
            if has_event:
                span.add_event(text, {"text": text})
                span.record_exception(ValueError(text))
        assert isinstance(span, HandlerSpan)
        encoded = encode_request([span])
        assert 0 < len(encoded) < 100_000
        (found,) = ExportTraceServiceRequest.FromString(encoded).resource_spans[0].scope_spans[0].spans
        assert not set(found.name) & set("\x1b\0")


def by_id(request: bytes) -> dict[bytes, Any]:
    """Return the decoded spans by ID, independent of the order of spans, attributes and groups."""
    spans = {}
    for resource_spans in ExportTraceServiceRequest.FromString(request).resource_spans:
        for scope_spans in resource_spans.scope_spans:
            resource_and_scope = (
                resource_spans.resource.SerializeToString(),
                resource_spans.schema_url,
                scope_spans.scope.SerializeToString(),
                scope_spans.schema_url,
            )
            for span in scope_spans.spans:
                if not span.status.ByteSize():
                    span.ClearField("status")
                attributes = {each.key: each.value.SerializeToString() for each in span.attributes}
                assert len(attributes) == len(span.attributes), "attribute names are unique"
                span_id = span.span_id
                del span.attributes[:]
                spans[span_id] = (resource_and_scope, attributes, span.SerializeToString())
    return spans


@given(
    st.one_of(
        st.from_regex(r"[ \t]*[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?[ \t]*", fullmatch=True),
        st.sampled_from(
            [
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
                "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
                "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
                "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more",
                "",
            ]
        ),
        st.text(max_size=80),
    ),
    st.sampled_from([None, "", "vendor=1,other=2", "not a state"]),
)
def test_parse_traceparent_like_opentelemetry(header: str, state: str | None) -> None:
    headers = {"traceparent": header} | ({} if state is None else {"tracestate": state})
    expected = trace.get_current_span(TraceContextTextMapPropagator().extract(headers, Context())).get_span_context()
    context = read_traceparent(headers)
    assert (context or INVALID_SPAN_CONTEXT) == expected
    assert context is None or (context.is_remote, context.trace_state) == (True, expected.trace_state)
