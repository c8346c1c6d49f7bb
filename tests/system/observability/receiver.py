"""In-memory trace receiver for OTLP over HTTP, which stores the last spans of engine and services."""

from __future__ import annotations

import gzip
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

PATH: Final = "/v1/traces"
_HOST: Final = "127.0.0.1"
_MAX_BODY: Final = 64 * 1024 * 1024
_NO_SPAN: Final = "0" * 16


@dataclass(frozen=True)
class ReceivedSpan:
    """Received span.

    Args:
        service: The process that sent it; ``Restate`` for the engine.
        name: The name.
        trace_id: The trace ID, 32 hexadecimal digits.
        span_id: The span ID, 16 hexadecimal digits.
        parent_id: The ID of the parent; None for a root span.
        start: The start in nanoseconds since 1970.
        end: The end in nanoseconds since 1970.
        attributes: The attributes as text.
        links: The linked spans, as ``(trace_id, span_id)``.
        error: The error message, possibly empty; None if the span succeeded.
    """

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start: int
    end: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    error: str | None = None


class TraceReceiver:
    """Receives spans on a local port; a context manager.

    Args:
        port: The port; 0 for a free one.
        max_spans: The number of stored spans; the oldest are dropped.
    """

    def __init__(self, port: int = 0, *, max_spans: int = 200_000) -> None:
        self._spans: deque[ReceivedSpan] = deque(maxlen=max_spans)
        self._lock = threading.Lock()
        self._port = port
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """The value for ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        if self._server is None:
            raise RuntimeError("the receiver is not running; use it as a context manager")
        return f"http://{_HOST}:{self._server.server_port}"

    @property
    def engine_endpoint(self) -> str:
        """The value for the engine's ``RESTATE_TRACING_ENDPOINT``."""
        return f"otlp+{self.url}{PATH}"

    def __enter__(self) -> Self:
        """Start listening."""
        receiver = self

        class Handler(_Handler):
            store = staticmethod(receiver.store)

        self._server = _Server((_HOST, self._port), Handler)
        threading.Thread(target=self._server.serve_forever, name="perdure-traces", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening; received spans remain available."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def spans(self) -> list[ReceivedSpan]:
        """Return the received spans in the order of arrival."""
        with self._lock:
            return list(self._spans)

    def store(self, body: bytes) -> None:
        """Store the spans of a protobuf request, or raise DecodeError."""
        spans = decode_spans(body)
        with self._lock:
            self._spans.extend(spans)


def decode_spans(body: bytes) -> list[ReceivedSpan]:
    """Return the spans of a protobuf request, or raise DecodeError."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        _span(_texts(resource.resource.attributes).get("service.name", ""), span)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _span(service: str, span: trace_pb2.Span) -> ReceivedSpan:
    parent = span.parent_span_id.hex()
    failed = span.status.code == trace_pb2.Status.StatusCode.STATUS_CODE_ERROR
    return ReceivedSpan(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=None if parent in ("", _NO_SPAN) else parent,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_texts(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        error=span.status.message if failed else None,
    )


def _texts(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {each.key: _text(each.value) for each in attributes}


def _text(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    if kind is None:
        return ""
    content = getattr(value, kind)
    return str(content).lower() if kind == "bool_value" else str(content)


class _Server(ThreadingHTTPServer):
    """Server that closes its open connections when it stops, since senders keep them alive."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        self._changes = threading.Lock()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its own thread."""
        with self._changes:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._changes:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore disconnected senders."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Stop listening and close open connections."""
        with self._changes:
            still_open = list(self._open)
        for each in still_open:
            with suppress(OSError):  # already closed
                each.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    """Handler of export requests; HTTP/1.1, since senders keep connections alive."""

    protocol_version = "HTTP/1.1"
    store: Any

    def do_POST(self) -> None:
        """Store the spans of a request."""
        length = int(self.headers.get("content-length") or 0)
        if self.path != PATH or not 0 < length <= _MAX_BODY:
            self._answer(404 if self.path != PATH else 413, b"")
            self.close_connection = True
            return
        body = self.rfile.read(length)
        try:
            self.store(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
        except (DecodeError, gzip.BadGzipFile):
            self._answer(400, b"")
            return
        self._answer(200, ExportTraceServiceResponse().SerializeToString())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
        """Log nothing, since requests are frequent."""
