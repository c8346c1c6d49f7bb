"""Spans that cost a handler little: an implementation of OpenTelemetry's tracing API for the spans of handlers alone.

The SDK's span copies, checks and locks at each attribute, and asks the sampler again for each child. That is right for
anybody's spans; but a saga of three steps makes thirteen of ours, and the time went off its throughput. Here, a span
keeps what it is given, the spans of one attempt share what is the same for all of them, and whether a trace is kept is
asked once for each attempt, as its other spans follow.

Everybody else's spans, as of httpx and SQLAlchemy, are the SDK's own, and all of them go the same way from here:
through the SDK's processors to their exporters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_OFF, DEFAULT_ON, Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.trace.span import DEFAULT_TRACE_STATE

from perdure.observability.span_parts import LocalTrace, SharedAttributes, SpanSort

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Span as SDKSpan
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.util.types import Attributes, AttributeValue

SCOPE = "perdure"
"""The name of the tracer whose spans these are."""

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED = TraceFlags(TraceFlags.DEFAULT)
UNSET = Status(StatusCode.UNSET)

_MOST: Final = 128
"""How many attributes, events and links a span has at most, if OpenTelemetry's variables say nothing else."""
_USUAL_LIMITS: Final = SpanLimits(_MOST, _MOST, _MOST, _MOST, _MOST, _MOST, SpanLimits.UNSET, SpanLimits.UNSET)

# What processors have for `on_start` that do nothing there: it would be called for each span.
_NOT_INTERESTED = (SpanProcessor.on_start, BatchSpanProcessor.on_start)
_NOWHERE = Context()


class TraceIds(RandomIdGenerator):
    """Random ids without the flag of Trace Context's level 2 that says that they are random.

    The engine (1.7.12) ignores a whole ``traceparent`` with a flag that it doesn't know, and begins a trace of its own.
    """

    def is_trace_id_random(self) -> bool:
        """Return False, so that the flag is not set."""
        return False


class HandlerSpan(Span):
    """A span of a handler. It reads as the SDK's `ReadableSpan`, for processors and exporters.

    Args:
        tracer: Who made it, and is told of its end.
        sort: What it has in common with others of its sort.
        shared: Facts that the spans of its attempt have, too.
        local: Its trace.
        span_id: Its own id.
        above: Its parent; None for a trace's first.
        start_time: In nanoseconds since 1970.
    """

    # What most spans never have another value of, they have in common.
    end_time: int | None = None
    status: Status = UNSET
    events: Sequence[Event] = ()
    links: Sequence[Link] = ()
    _context: SpanContext | None = None

    def __init__(  # noqa: PLR0917 - by position, since it is called for each span
        self,
        tracer: HandlerTracer,
        sort: SpanSort,
        shared: SharedAttributes,
        local: LocalTrace,
        span_id: int,
        above: HandlerSpan | SpanContext | None,
        start_time: int,
    ) -> None:
        self.tracer = tracer
        self.sort = sort
        self.shared = shared
        self.local = local
        self.span_id = span_id
        self.above = above
        self.start_time = start_time
        self.own: dict[str, Any] = {}

    # --- what a span is told ------------------------------------------------------------------------------------------

    def end(self, end_time: int | None = None) -> None:
        """End it, once.

        Args:
            end_time: In nanoseconds since 1970; now when None.
        """
        if self.end_time is None:
            self.end_time = time.time_ns() if end_time is None else end_time
            for tell in self.tracer.provider.enders:
                tell(self)

    def begin(self, sort: SpanSort, shared: SharedAttributes) -> Span:
        """Begin a span under this one.

        Args:
            sort: What it has in common with others of its sort.
            shared: Facts that the spans of its attempt have, too.
        """
        tracer, local = self.tracer, self.local
        if tracer.provider.starters or not local.is_kept:
            return tracer.begin(sort, shared, self)
        return HandlerSpan(tracer, sort, shared, local, tracer.new_span_id(), self, time.time_ns())

    def get_span_context(self) -> SpanContext:
        """Return its ids."""
        return self.context

    @property
    def context(self) -> SpanContext:
        """Its ids."""
        if self._context is None:  # most are never asked for
            local = self.local
            self._context = SpanContext(local.trace_id, self.span_id, False, local.flags, local.state)
        return self._context

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add facts; of too many, the last ones stay."""
        if self.end_time is None:
            self.own.update(attributes)
            if len(self.own) + len(self.shared) + len(self.sort.attributes) > _MOST:
                self._drop_attributes()

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Add a fact, as `set_attributes` does."""
        self.set_attributes({key: value})

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add something that happened meanwhile; of too much, the last stays."""
        if self.end_time is None:
            self.dropped_events += len(self.events) == _MOST
            self.events = (*self.events[1 - _MOST :], Event(name, attributes, timestamp))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add a relation to another span; of too many, the last ones stay."""
        if self.end_time is None and context.is_valid:
            self.dropped_links += len(self.links) == _MOST
            self.links = (*self.links[1 - _MOST :], Link(context, attributes))

    def update_name(self, name: str) -> None:
        """Rename it."""
        if self.end_time is None:
            self.sort = SpanSort(name, self.sort.kind, self.sort.attributes)

    def is_recording(self) -> bool:
        """Tell if it takes any more facts."""
        return self.end_time is None

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Say how it went; what was said to be well stays so."""
        if self.end_time is None and self.status.status_code is not StatusCode.OK:
            self.status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an exception as an event: its type and message, without the stack trace, which may show values."""
        facts: dict[str, Any] = {
            "exception.type": type(exception).__qualname__,
            "exception.message": str(exception),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**facts, **(attributes or {})}, timestamp)

    # --- what processors and exporters read ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What is done."""
        return self.sort.name

    @property
    def kind(self) -> SpanKind:
        """Its side of a call."""
        return self.sort.kind

    @property
    def parent(self) -> SpanContext | None:
        """Its parent's ids; None for a trace's first."""
        return self.above.context if isinstance(self.above, HandlerSpan) else self.above

    @property
    def attributes(self) -> Mapping[str, Any]:
        """All its facts."""
        return {**self.shared, **self.sort.attributes, **self.own}

    @property
    def resource(self) -> Resource:
        """What describes the process."""
        return self.tracer.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        """Who made it."""
        return self.tracer.scope

    dropped_attributes = dropped_events = dropped_links = 0

    def _drop_attributes(self) -> None:
        known = {**self.shared, **self.sort.attributes}
        fresh = [name for name in self.own if name not in known]
        dropped = fresh[: max(0, len(known) + len(fresh) - _MOST)]
        for name in dropped:
            del self.own[name]
        self.dropped_attributes += len(dropped)


class HandlerTracer(Tracer):
    """Makes the spans of handlers.

    Args:
        provider: Its sampler, ids, resource and processors.
    """

    encoded: tuple[bytes, bytes] | None = None
    """What an exporter made of resource and scope, kept by it for the next spans."""

    def __init__(self, provider: HandlerTracerProvider) -> None:
        self.resource = provider.resource
        self.scope = InstrumentationScope(SCOPE)
        self.provider = provider
        self.new_span_id = provider.id_generator.generate_span_id

    def start_span(  # noqa: PLR0917 - the API's signature
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: ARG002 - the API's signature
        set_status_on_exception: bool = True,  # noqa: ARG002 - the API's signature
    ) -> Span:
        """Begin a span. Not recorded, unless its trace is kept.

        Args:
            name: What is done.
            context: Whose current span is its parent; what is current when None.
            kind: Its side of a call.
            attributes: Its facts, which others may have, too, see `SharedAttributes`.
            links: Its relations to other spans.
            start_time: In nanoseconds since 1970; now when None.
            record_exception: Without meaning here; see `start_as_current_span`.
            set_status_on_exception: Without meaning here; see `start_as_current_span`.
        """
        current = trace.get_current_span(context)
        parent: HandlerSpan | SpanContext | None = current if type(current) is HandlerSpan else None
        if parent is None and (others := current.get_span_context()).is_valid:
            parent = others
        shared = attributes if isinstance(attributes, SharedAttributes) else SharedAttributes()
        span = self.begin(SpanSort(name, kind), shared, parent, start_time, context, links)
        if isinstance(span, HandlerSpan):
            if attributes and attributes is not shared:
                span.set_attributes(attributes)
            span.links = tuple(links or ())
        return span

    def begin(  # noqa: PLR0917 - by position, since it is called for many spans
        self,
        sort: SpanSort,
        shared: SharedAttributes,
        parent: HandlerSpan | SpanContext | None,
        start_time: int | None = None,
        context: Context | None = None,
        links: Sequence[Link] | None = None,
    ) -> Span:
        """Begin a span, as `start_span` does, under a parent that is known.

        Args:
            sort: What it has in common with others of its sort.
            shared: Facts that the spans of its attempt have, too.
            parent: Its parent, or that one's ids; None for a trace's first.
            start_time: In nanoseconds since 1970; now when None.
            context: For the sampler.
            links: For the sampler.
        """
        provider = self.provider
        ids: SpanContext | None = parent.context if isinstance(parent, HandlerSpan) else parent
        if ids is None or (ids.is_remote and not provider.follows):
            span = self._sampled(sort, shared, ids, start_time, context, links)
        elif ids.trace_flags & TraceFlags.SAMPLED:  # it is kept, or not, as its parent is
            local = parent.local if isinstance(parent, HandlerSpan) else LocalTrace(ids)
            span = HandlerSpan(self, sort, shared, local, self.new_span_id(), parent, start_time or time.time_ns())
        else:
            return NonRecordingSpan(ids)
        if provider.starters and isinstance(span, HandlerSpan):
            for tell in provider.starters:
                tell(cast("SDKSpan", span), context)
        return span

    def _sampled(  # noqa: PLR0917 - as `begin`
        self,
        sort: SpanSort,
        shared: SharedAttributes,
        parent: SpanContext | None,
        start_time: int | None,
        context: Context | None,
        links: Sequence[Link] | None,
    ) -> Span:
        provider = self.provider
        trace_id = provider.id_generator.generate_trace_id() if parent is None else parent.trace_id
        if context is None and parent is not None:
            context = trace.set_span_in_context(NonRecordingSpan(parent), _NOWHERE)
        facts = {**shared, **sort.attributes}
        sampled = provider.sampler.should_sample(context or _NOWHERE, trace_id, sort.name, sort.kind, facts, links)
        flags = _SAMPLED if sampled.decision is Decision.RECORD_AND_SAMPLE else _NOT_SAMPLED
        ids = SpanContext(trace_id, self.new_span_id(), False, flags, sampled.trace_state or DEFAULT_TRACE_STATE)
        if sampled.decision is Decision.DROP:
            return NonRecordingSpan(ids)
        local = LocalTrace(ids)
        span = HandlerSpan(self, sort, shared, local, ids.span_id, parent, start_time or time.time_ns())
        span.own.update(sampled.attributes or {})
        return span

    def start_as_current_span(  # noqa: PLR0917 - the API's signature
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Any:
        """Begin a span that is the current one in a block, see `opentelemetry.trace.use_span`."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        return trace.use_span(span, end_on_exit, record_exception, set_status_on_exception)


class HandlerTracerProvider(TracerProvider):
    """The SDK's provider, whose tracer for handlers is a `HandlerTracer`.

    Args:
        resource: What describes the process.
        ids: Makes the ids of traces and spans.
        sampler: Which traces are kept; what OpenTelemetry's standard variables say when None.
    """

    def __init__(self, resource: Resource, ids: IdGenerator, sampler: Sampler | None = None) -> None:
        super().__init__(sampler=sampler, resource=resource, id_generator=ids)
        # The SDK's usual samplers follow a parent without a further question, which is dear to ask.
        self.follows = self.sampler is DEFAULT_ON or self.sampler is DEFAULT_OFF
        self._is_limited = vars(SpanLimits()) != vars(_USUAL_LIMITS)
        self.starters: tuple[Callable[[SDKSpan, Context | None], None], ...] = ()
        self.enders: tuple[Callable[[Any], None], ...] = ()

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """Have a processor told of all spans from now on.

        Args:
            span_processor: The SDK's, or one of its kind.
        """
        super().add_span_processor(span_processor)
        if type(span_processor).on_start not in _NOT_INTERESTED:
            self.starters = (*self.starters, span_processor.on_start)
        self.enders = (*self.enders, span_processor.on_end)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        """Return a tracer; where limits are set, the SDK's for handlers too, which keeps all of them."""
        if instrumenting_module_name == SCOPE and not self._is_limited:
            return HandlerTracer(self)
        return super().get_tracer(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
