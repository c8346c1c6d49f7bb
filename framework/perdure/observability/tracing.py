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

from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from restate.extensions import current_context

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

__all__ = ["annotate", "link_to", "trace_handlers", "traceparent"]

_propagator = TraceContextTextMapPropagator()


@dataclass
class _AttemptSpans:
    """The spans of one attempt that are open."""

    span: Span
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
    """Add facts to the span of the attempt that is running, as ``perdure.<fact>``; nothing happens without one.

    Args:
        facts: For example ``saga_id="trip-1"``; an underscore becomes a dot.
    """
    spans = _attempt.get()
    if spans is not None:
        spans.span.set_attributes({_attribute(name): value for name, value in facts.items()})


def link_to(parent: str | None) -> None:
    """Link the span of the attempt that is running to another one, as a rollback's to its saga.

    Args:
        parent: What `traceparent` returned there; None links to nothing.
    """
    spans = _attempt.get()
    if spans is None or parent is None:
        return
    context = trace.get_current_span(_propagator.extract({"traceparent": parent})).get_span_context()
    if context.is_valid:
        spans.span.add_link(context)


def traceparent() -> str | None:
    """Return the current span as W3C Trace Context writes it, or None when there is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


@cache  # the SDK makes a new one at each call, which costs half as much as a span
def _tracer() -> trace.Tracer:
    return trace.get_tracer("perdure")


def _attempt_started(event: AttemptStarted) -> None:
    ctx = current_context()
    if ctx is None:  # an event from elsewhere than a handler
        return
    request = ctx.request()
    headers = request.attempt_headers if "traceparent" in request.attempt_headers else request.headers
    invocation = event.invocation
    number = _attempts.next(invocation.id)
    span = _tracer().start_span(
        str(invocation.handler), context=_propagator.extract(headers, context=Context()), kind=SpanKind.SERVER
    )
    # Not detached: the server gives each attempt a task, and so a context, of its own.
    otel_context.attach(trace.set_span_in_context(span))
    if not span.is_recording():  # not sampled, and so is all that is in it
        return
    saga = {"perdure.saga.id": SAGA_HEADER, "perdure.step": STEP_HEADER}  # what a compensation is told
    span.set_attributes(
        {
            **_of(invocation),
            "perdure.attempt": number,
            "perdure.replays": event.replays,
            **{name: request.headers[header] for name, header in saga.items() if header in request.headers},
        }
    )
    _attempt.set(_AttemptSpans(span))


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
    _end(spans.span, event.error)


def _run_started(event: RunAttemptStarted) -> None:
    if _attempt.get() is None:
        return
    span = _tracer().start_span(
        f"run {event.run}",
        context=_inside(event.within),
        attributes={**_of(event.invocation), "perdure.run": event.run},
    )
    _run.set((span, otel_context.attach(trace.set_span_in_context(span))))


def _run_ended(event: RunAttemptEnded) -> None:
    open_run = _run.get()
    if open_run is None:
        return
    span, token = open_run
    _run.set(None)
    otel_context.detach(token)
    _end(span, event.error)


def _activity_started(event: ActivityStarted) -> None:
    spans = _attempt.get()
    if spans is None:
        return
    is_named_by_code = event.kind in (ActivityKind.CALL, ActivityKind.STEP)
    spans.activities[event] = _tracer().start_span(
        f"{event.kind} {event.name}" if is_named_by_code else event.kind.value,
        context=_inside(event.within),
        kind=SpanKind.CLIENT if event.kind is ActivityKind.CALL else SpanKind.INTERNAL,
        attributes={
            **_of(event.invocation),
            f"perdure.{event.kind}": event.name,
            **{_attribute(name): value for name, value in event.facts.items()},
        },
    )


def _activity_ended(event: ActivityEnded) -> None:
    spans = _attempt.get()
    span = None if spans is None else spans.activities.pop(event.started, None)
    if span is not None:
        _end(span, event.error)


def _inside(activity: Event | None) -> Context:
    """Return the context of a span: inside an activity's, else inside what is current."""
    spans = _attempt.get()
    outer = None if spans is None or activity is None else spans.activities.get(activity)
    return otel_context.get_current() if outer is None else trace.set_span_in_context(outer)


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        # The message only: a stack trace shows values of whatever library raised it.
        said = error.message if isinstance(error, TerminalError) else type(error).__name__
        span.set_status(Status(StatusCode.ERROR, said))
        span.set_attribute("error.type", type(error).__qualname__)
        if isinstance(error, TerminalError):
            span.set_attribute("perdure.status_code", error.status_code)
    span.end()


def _of(invocation: Invocation) -> dict[str, Any]:
    facts = {
        "perdure.invocation.id": invocation.id,
        "perdure.service": invocation.handler.service,
        "perdure.handler": invocation.handler.handler,
    }
    return facts if invocation.key is None else {**facts, "perdure.key": invocation.key}


def _attribute(name: str) -> str:
    return f"perdure.{name.replace('_', '.')}"


class _Attempts:
    """Counts the attempts of the last invocations, as far as this process has seen them.

    The engine does not tell; its own spans have an exact count.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()

    def next(self, invocation_id: str) -> int:
        """Return 1 for the first attempt."""
        with self._lock:
            self._seen[invocation_id] = self._seen.get(invocation_id, 0) + 1
            self._seen.move_to_end(invocation_id)
            if len(self._seen) > self._size:
                self._seen.popitem(last=False)
            return self._seen[invocation_id]


_attempts = _Attempts()
