"""Traces: a span for each attempt, run and activity, under the engine's own trace.

The engine sends the span of each attempt along as ``traceparent``; what happens in the handler hangs under it, and so
do the spans of libraries that are instrumented (httpx here; a service adds its own, as SQLAlchemy). A call's own trace
goes on by itself, since the engine hangs the called invocation under the caller's attempt.

Replays make no second span: spans are made of events, and events tell what happens, not what is replayed. A span that
is open when its attempt ends, since the handler was suspended, ends there too, with ``perdure.interrupted``; the wait
goes on in the engine, whose own spans show it.

Where spans go is the process's matter, see `perdure.observability.tracing_setup`.
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

from perdure._runtime.sdk import headers_of
from perdure.errors import TerminalError
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
from perdure.observability.span_parts import SharedAttributes, SpanSort
from perdure.observability.spans import SCOPE, HandlerSpan, HandlerTracer
from perdure.observability.trace_context import read_traceparent

__all__ = ["annotate", "link_to", "trace_handlers", "traceparent"]

_propagator = TraceContextTextMapPropagator()
_NOWHERE = Context()


@dataclass
class _AttemptSpans:
    """The spans of one attempt that are open.

    Args:
        span: The attempt's own.
        context: In which that one is current.
        shared: What all of them have.
        activities: Those of the activities under way.
    """

    span: Span
    context: Context
    shared: SharedAttributes
    activities: dict[Event, Span] = field(default_factory=dict)


_attempt: ContextVar[_AttemptSpans | None] = ContextVar("perdure_attempt_spans", default=None)
_run: ContextVar[tuple[Span, Token[Context]] | None] = ContextVar("perdure_run_span", default=None)


def trace_handlers() -> Callable[[], None]:
    """Make spans of the events of handlers, with the tracer provider that the process has set up.

    Returns:
        A function that ends it.
    """
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


def annotate(**facts: str) -> None:
    """Add facts to the span of the attempt that is running, and to those that begin in it from now on.

    They are called ``perdure.<fact>``. Nothing happens where no attempt is traced.

    Args:
        facts: For example ``saga_id="trip-1"``; an underscore becomes a dot.
    """
    spans = _attempt.get()
    if spans is None:
        return
    attributes = {_attribute(name): value for name, value in facts.items()}
    spans.span.set_attributes(attributes)
    spans.shared = spans.shared.with_more(attributes)


def link_to(parent: str | None) -> None:
    """Link the span of the attempt that is running to another one, as a rollback's to its saga.

    Args:
        parent: What `traceparent` returned there; None links to nothing.
    """
    spans = _attempt.get()
    if spans is None or parent is None:
        return
    context = read_traceparent({"traceparent": parent})
    if context is not None:
        spans.span.add_link(context)


def traceparent() -> str | None:
    """Return the current span as W3C Trace Context writes it, or None when there is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


@cache  # the SDK makes a new one at each call, which costs half as much as a span
def _tracer() -> trace.Tracer:
    return trace.get_tracer(SCOPE)


def _attempt_started(event: AttemptStarted) -> None:
    ctx = current_context()
    if ctx is None:  # an event from elsewhere than a handler
        return
    headers = headers_of(ctx)
    shared = _of(event.invocation, headers)
    handler = event.invocation.handler
    sort = _sort_of_attempt(handler.service, handler.handler, event.number, event.replays)
    span = _begin(sort, read_traceparent(headers), shared)
    # Not detached: the server gives each attempt a task, and so a context, of its own.
    context = trace.set_span_in_context(span)
    otel_context.attach(context)
    if not span.is_recording():  # not sampled, and so is all that is in it
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
    span = _begin(_sort_of_run(event.run), _outer(spans, event.within), spans.shared)
    _run.set((span, otel_context.attach(trace.set_span_in_context(span))))


def _run_ended(event: RunAttemptEnded) -> None:
    open_run = _run.get()
    if open_run is None:
        return
    span, token = open_run
    _run.set(None)
    otel_context.detach(token)
    if event.cut_off:
        span.set_attribute("perdure.interrupted", value=True)
    if event.error is not None:
        _fail(span, event.error)
    span.end()


def _activity_started(event: ActivityStarted) -> None:
    spans = _attempt.get()
    if spans is None:
        return
    sort = _sort_of_activity(event.kind, event.name)
    span = spans.activities[event] = _begin(sort, _outer(spans, event.within), spans.shared)
    for fact, value in event.facts.items():
        if spans.shared.get(told := _attribute(fact)) != value:
            span.set_attribute(told, value)


# Most names are from code, so there are not many sorts.


@lru_cache(maxsize=2048)
def _sort_of_attempt(service: str, handler: str, number: int, replays: bool) -> SpanSort:
    facts = {"perdure.attempt": number, "perdure.replays": replays}
    return SpanSort(f"{service}/{handler}", SpanKind.SERVER, facts)


@lru_cache(maxsize=2048)
def _sort_of_run(name: str) -> SpanSort:
    return SpanSort(f"run {name}", attributes={"perdure.run": name})


@lru_cache(maxsize=2048)
def _sort_of_activity(kind: ActivityKind, name: str) -> SpanSort:
    is_named_by_code = kind in (ActivityKind.CALL, ActivityKind.STEP)
    return SpanSort(
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


def _outer(spans: _AttemptSpans, activity: Event | None) -> Span:
    """Return what a span is a part of: an activity, else what is current."""
    if activity is not None and (outer := spans.activities.get(activity)) is not None:
        return outer
    # Of the handler's own code, most make no spans.
    return spans.span if otel_context.get_current() is spans.context else trace.get_current_span()


def _begin(sort: SpanSort, parent: Span | SpanContext | None, shared: SharedAttributes) -> Span:
    if type(parent) is HandlerSpan:
        return parent.begin(sort, shared)
    above = parent.get_span_context() if isinstance(parent, Span) else parent
    tracer = _tracer()
    if isinstance(tracer, HandlerTracer):
        return tracer.begin(sort, shared, above)
    # A provider of somebody else's.
    context = _NOWHERE if above is None else trace.set_span_in_context(NonRecordingSpan(above), _NOWHERE)
    facts = {**shared, **sort.attributes}
    return tracer.start_span(sort.name, context=context, kind=sort.kind, attributes=facts)


def _fail(span: Span, error: BaseException) -> None:
    # The message only: a stack trace shows values of whatever library raised it.
    said = error.message if isinstance(error, TerminalError) else type(error).__name__
    span.set_status(Status(StatusCode.ERROR, said))
    span.set_attribute("error.type", type(error).__qualname__)
    if isinstance(error, TerminalError):
        span.set_attribute("perdure.status_code", error.status_code)


def _of(invocation: Invocation, headers: Mapping[str, str]) -> SharedAttributes:
    """Return what all spans of an attempt have."""
    told = {"perdure.invocation.id": invocation.id}
    if invocation.key is not None:
        told["perdure.key"] = invocation.key
    # What a saga tells its compensations, and those that its steps call.
    for name, header in (("perdure.saga.id", SAGA_HEADER), ("perdure.step", STEP_HEADER)):
        if header in headers:
            told[name] = headers[header]
    return _of_handler(invocation.handler.service, invocation.handler.handler).with_more(told)


@lru_cache(maxsize=2048)
def _of_handler(service: str, handler: str) -> SharedAttributes:
    return SharedAttributes({"perdure.service": service, "perdure.handler": handler})


@lru_cache(maxsize=256)
def _attribute(name: str) -> str:
    return f"perdure.{name.replace('_', '.')}"
