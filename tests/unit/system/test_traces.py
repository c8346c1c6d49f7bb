"""Trees of spans, and the receiver of spans."""

from __future__ import annotations

import gzip
import http.client

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.system.observability.receiver import PATH, ReceivedSpan, TraceReceiver
from tests.system.observability.traces import TraceTree, lines, linked_to, trace_of, tree_of


def span(number: int, parent: int | None = None, **changes: object) -> ReceivedSpan:
    facts = {
        "service": "s",
        "name": f"span {number}",
        "trace_id": "t",
        "span_id": str(number),
        "parent_id": None if parent is None else str(parent),
        "start": number,
        "end": number + 1_500_000,
    }
    return ReceivedSpan(**{**facts, **changes})  # type: ignore[arg-type] # a test's own spans


@given(st.lists(st.integers(min_value=0, max_value=30), min_size=1, max_size=30), st.randoms())
def test_tree_contains_each_span_once(parents, random):
    spans = [span(0), *(span(number, min(parent, number - 1)) for number, parent in enumerate(parents, 1))]
    shuffled = random.sample(spans, len(spans))
    tree = tree_of([*shuffled, shuffled[0]], "t")
    assert tree.is_connected
    walked = list(tree.walk())
    assert sorted(each.span_id for _, each in walked) == sorted(each.span_id for each in spans)
    for depth, each in walked:
        assert [one.span_id for one in tree.path(each)][-1] == each.span_id
        assert len(tree.path(each)) == depth + 1


def test_trace_without_parent_is_shown_as_incomplete():
    tree = tree_of([span(1), span(3, parent=2)], "t")
    assert not tree.is_connected
    assert [(depth, each.span_id) for depth, each in tree.walk()] == [(0, "1"), (0, "3")]
    assert not TraceTree("t", ()).is_connected


def test_find_traces_by_key_and_links():
    spans = [
        span(1, attributes={"perdure.key": "trip-1"}),
        span(2, trace_id="later", start=9, attributes={"perdure.key": "trip-1"}),
        span(3, trace_id="undo", links=(("t", "1"),)),
    ]
    tree = trace_of(spans, "trip-1")
    assert tree is not None
    assert tree.trace_id == "t"
    assert trace_of(spans, "trip-2") is None
    assert [each.trace_id for each in linked_to(spans, tree)] == ["undo"]


def test_line_shows_service_duration_and_error():
    tree = tree_of(
        [span(1, service="Restate"), span(2, 1, error="no seats", attributes={"perdure.interrupted": "true"})], "t"
    )
    assert lines(tree) == [
        "span 1  [engine]  1.5 ms, at 0.0",
        "  span 2  [s]  1.5 ms, at 0.0, interrupted, FAILED: no seats",
    ]


def request() -> bytes:
    message = ExportTraceServiceRequest()
    sent = message.resource_spans.add()
    name = sent.resource.attributes.add()
    name.key, name.value.string_value = "service.name", "flights"
    made = sent.scope_spans.add().spans.add()
    made.name, made.trace_id, made.span_id = "run", bytes(range(16)), bytes(range(8))
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("path", "body", "encoding", "status", "kept"),
    [
        (PATH, request(), None, 200, 1),
        (PATH, gzip.compress(request()), "gzip", 200, 1),
        (PATH, b"\xff no protobuf", None, 400, 0),
        (PATH, b"no gzip", "gzip", 400, 0),
        ("/v1/metrics", request(), None, 404, 0),
    ],
)
def test_receiver_accepts_only_spans(path, body, encoding, status, kept):
    with TraceReceiver() as receiver:
        connection = http.client.HTTPConnection(receiver.url.removeprefix("http://"), timeout=10)
        connection.request("POST", path, body, {} if encoding is None else {"content-encoding": encoding})
        assert connection.getresponse().status == status
        connection.close()
    assert [(each.service, each.name, each.parent_id) for each in receiver.spans()] == [("flights", "run", None)] * kept


def test_complete_trace_reaches_ingress_and_services():
    spans = [span(1, name="ingress T/run"), span(2, 1, name="invocation-attempt T/run"), span(3, 2, name="T/run")]
    assert tree_of(spans, "t").is_complete
    assert not tree_of(spans[:2], "t").is_complete, "the service has not sent its part yet"
    assert not tree_of(spans[1:], "t").is_complete, "the engine has not sent its beginning yet"
