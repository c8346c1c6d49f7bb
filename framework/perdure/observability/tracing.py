"""Spans of attempts, runs and activities under the engine's trace.

The engine sends its span of each attempt as ``traceparent``. It is the parent of the spans of the handler and of
instrumented libraries (httpx; a service adds its own, such as SQLAlchemy). Calls continue the trace, since the engine
makes the called invocation a child of the caller's attempt.

Spans are created from events, so replays create none. A span that is open when its attempt ends, because the handler
suspends, ends there with ``perdure.interrupted``; the engine's spans show the wait.
`perdure.observability.tracing_setup` configures the export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from restate.extensions import current_context

from perdure._runtime.plain_text import display_name
from perdure._runtime.sdk import headers_of
from perdure.errors import TerminalError, message_of, status_of
from perdure.observability.activities import ActivityEnded, ActivityKind, ActivityStarted
from perdure.observability.events import (
    AttemptEnded,
    AttemptOutcome,
    AttemptStarted,
    Event,
    Invocation,
    RunAttemptEnded,
    RunAttemptStarted,
    subscribe,
    unsubscribe,
)
from perdure.observability.lifecycle import SAGA_HEADER, STEP_HEADER
from perdure.observability.spans import SCOPE, HandlerSpan, HandlerTracer, SharedAttributes, SpanType
from perdure.observability.trace_context import read_traceparent

_propagator = TraceContextTextMapPropagator()
_NO_CONTEXT = Context()


@dataclass
class _AttemptSpans:
    """Open spans of one attempt.

    Args:
        span: The span of the attempt.
        context: The context in which this span is current.
        shared: The attributes of all spans.
        activities: The spans of the running activities.
    """

    span: Span
    context: Context
    shared: SharedAttributes
    activities: dict[Event, Span] = field(default_factory=dict)


_attempt: ContextVar[_AttemptSpans | None] = ContextVar("perdure_attempt_spans", default=None)
_run: ContextVar[tuple[Span, Token[Context]] | None] = ContextVar("perdure_run_span", default=None)


def trace_handlers() -> Callable[[], None]:
    """Create spans from events with the tracer provider of the process; return a function that stops this."""
    listeners: list[tuple[type[Any], Callable[[Any], None]]] = [
        (AttemptStarted, _attempt_started),
        (AttemptEnded, _attempt_ended),
        (RunAttemptStarted, _run_started),
        (RunAttemptEnded, _run_ended),
        (ActivityStarted, _activity_started),
        (ActivityEnded, _activity_ended),
    ]
    for event, listener in listeners:
        subscribe(event, listener)

    def stop() -> None:
        for event, listener in listeners:
            unsubscribe(event, listener)

    return stop


def annotate(**attributes: str) -> None:
    """Add attributes to the span of the running attempt and to its further spans.

    ``saga_id="trip-1"`` becomes the attribute ``perdure.saga.id``. Without a traced attempt, this has no effect.
    """
    spans = _attempt.get()
    if spans is None:
        return
    named = {_attribute_name(name): value for name, value in attributes.items()}
    spans.span.set_attributes(named)
    spans.shared = spans.shared.extended(named)


def link_to(parent: str | None) -> None:
    """Link the span of the running attempt to another span, for example a rollback to its saga.

    Args:
        parent: The result of `traceparent` in the other span; None has no effect.
    """
    spans = _attempt.get()
    if spans is None or parent is None:
        return
    context = read_traceparent({"traceparent": parent})
    if context is not None:
        spans.span.add_link(context)


def traceparent() -> str | None:
    """Return the current span as a W3C ``traceparent``; None without a span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


@cache  # the SDK creates a tracer per call, at half the cost of a span
def _tracer() -> trace.Tracer:
    return trace.get_tracer(SCOPE)


def _attempt_started(event: AttemptStarted) -> None:
    ctx = current_context()
    if ctx is None:  # the event was published outside of a handler
        return
    headers = headers_of(ctx)
    shared = _shared_attributes(event.invocation, headers)
    handler = event.invocation.handler
    type_ = _attempt_type(handler.service, handler.handler, event.number, event.replays)
    span = _start_span(type_, read_traceparent(headers), shared)
    # Never detached, since the server runs each attempt in its own task and context.
    context = trace.set_span_in_context(span)
    otel_context.attach(context)
    if not span.is_recording():  # not sampled, like its children
        return
    _attempt.set(_AttemptSpans(span, context, shared))


def _attempt_ended(event: AttemptEnded) -> None:
    spans = _attempt.get()
    if spans is None:
        return
    for span in spans.activities.values():
        span.set_attribute("perdure.interrupted", value=True)
        span.end()
    spans.activities.clear()
    if event.outcome is AttemptOutcome.INTERRUPTED:
        spans.span.set_attribute("perdure.interrupted", value=True)
    if event.error is not None:
        _fail(spans.span, event.error)
    spans.span.end()


def _run_started(event: RunAttemptStarted) -> None:
    spans = _attempt.get()
    if spans is None:
        return
    span = _start_span(_run_type(event.run), _parent(spans, event.parent), spans.shared)
    _run.set((span, otel_context.attach(trace.set_span_in_context(span))))


def _run_ended(event: RunAttemptEnded) -> None:
    open_run = _run.get()
    if open_run is None:
        return
    span, token = open_run
    _run.set(None)
    otel_context.detach(token)
    if event.interrupted:
        span.set_attribute("perdure.interrupted", value=True)
    if event.error is not None:
        _fail(span, event.error)
    span.end()


def _activity_started(event: ActivityStarted) -> None:
    spans = _attempt.get()
    if spans is None:
        return
    type_ = _activity_type(event.kind, display_name(event.name))
    span = spans.activities[event] = _start_span(type_, _parent(spans, event.parent), spans.shared)
    for key, value in event.attributes.items():
        if spans.shared.get(name := _attribute_name(key)) != value:
            span.set_attribute(name, value)


# Most names come from code, so there are few span types.


@lru_cache(maxsize=2048)
def _attempt_type(service: str, handler: str, number: int, replays: bool) -> SpanType:
    attributes = {"perdure.attempt": number, "perdure.replays": replays}
    return SpanType(f"{service}/{handler}", SpanKind.SERVER, attributes)


@lru_cache(maxsize=2048)
def _run_type(name: str) -> SpanType:
    return SpanType(f"run {name}", attributes={"perdure.run": name})


@lru_cache(maxsize=2048)
def _activity_type(kind: ActivityKind, name: str) -> SpanType:
    is_named_by_code = kind in (ActivityKind.CALL, ActivityKind.STEP)
    return SpanType(
        f"{kind} {name}" if is_named_by_code else kind.value,
        SpanKind.CLIENT if kind is ActivityKind.CALL else SpanKind.INTERNAL,
        {f"perdure.{kind}": name},
    )


def _activity_ended(event: ActivityEnded) -> None:
    spans = _attempt.get()
    span = None if spans is None else spans.activities.pop(event.started, None)
    if span is not None:
        if event.error is not None:
            _fail(span, event.error)
        span.end()


def _parent(spans: _AttemptSpans, activity: Event | None) -> Span:
    """Return the span of an activity, or else the current span."""
    if activity is not None and (parent := spans.activities.get(activity)) is not None:
        return parent
    # Fast path: handlers rarely start spans.
    return spans.span if otel_context.get_current() is spans.context else trace.get_current_span()


def _start_span(type_: SpanType, parent: Span | SpanContext | None, shared: SharedAttributes) -> Span:
    if type(parent) is HandlerSpan:
        return parent.start_child(type_, shared)
    parent_context = parent.get_span_context() if isinstance(parent, Span) else parent
    tracer = _tracer()
    if isinstance(tracer, HandlerTracer):
        return tracer.start(type_, shared, parent_context)
    # The process has another tracer provider.
    context = _NO_CONTEXT
    if parent_context is not None:
        context = trace.set_span_in_context(NonRecordingSpan(parent_context), _NO_CONTEXT)
    attributes = {**shared, **type_.attributes}
    return tracer.start_span(type_.name, context=context, kind=type_.kind, attributes=attributes)


def _fail(span: Span, error: BaseException) -> None:
    # Without the stack trace and the messages of other errors, which may contain values.
    description = message_of(error) if isinstance(error, TerminalError) else type(error).__name__
    span.set_status(Status(StatusCode.ERROR, description))
    span.set_attribute("error.type", type(error).__qualname__)
    if isinstance(error, TerminalError):
        span.set_attribute("perdure.status_code", status_of(error))


def _shared_attributes(invocation: Invocation, headers: Mapping[str, str]) -> SharedAttributes:
    """Return the attributes of all spans of an attempt."""
    attributes = {"perdure.invocation.id": invocation.id}
    if invocation.key is not None:
        attributes["perdure.key"] = invocation.key
    # A saga sends these headers to compensations and to the handlers that its steps call.
    for name, header in (("perdure.saga.id", SAGA_HEADER), ("perdure.step", STEP_HEADER)):
        if header in headers:
            attributes[name] = headers[header]
    return _handler_attributes(invocation.handler.service, invocation.handler.handler).extended(attributes)


@lru_cache(maxsize=2048)
def _handler_attributes(service: str, handler: str) -> SharedAttributes:
    return SharedAttributes({"perdure.service": service, "perdure.handler": handler})


@lru_cache(maxsize=256)
def _attribute_name(name: str) -> str:
    return f"perdure.{name.replace('_', '.')}"
