"""Implementation of OpenTelemetry's tracing API for the spans of handlers, at low cost.

The SDK's spans copy, check and lock at each attribute, and sample each child. A saga of three steps creates thirteen
spans, so this cost reduces its throughput. Here, spans of one attempt share their common attributes, an exporter
encodes these once, and the sampler decides once per attempt.

Spans of other libraries, such as httpx and SQLAlchemy, are the SDK's. All spans pass through the SDK's processors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
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

from perdure._runtime.plain_text import display_name, message_text

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Span as SDKSpan
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.util.types import Attributes, AttributeValue

SCOPE = "perdure"
"""The name of the tracer for handlers."""

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED = TraceFlags(TraceFlags.DEFAULT)
UNSET_STATUS = Status(StatusCode.UNSET)

_LIMIT: Final = 128
"""OpenTelemetry's default limit of attributes, events and links per span."""
_DEFAULT_LIMITS: Final = SpanLimits(_LIMIT, _LIMIT, _LIMIT, _LIMIT, _LIMIT, _LIMIT, SpanLimits.UNSET, SpanLimits.UNSET)

# Implementations of `on_start` that do nothing and need not be called.
_EMPTY_ON_START = (SpanProcessor.on_start, BatchSpanProcessor.on_start)
_NO_CONTEXT = Context()


class SharedAttributes(dict[str, Any]):
    """Attributes that the spans of one attempt share; immutable once a span has them."""

    encoded: bytes | None = None
    """Cache of the exporter."""

    base: SharedAttributes | None = None
    """The attributes that these extend, if none has another value here."""

    added: Mapping[str, Any] = MappingProxyType({})
    """The attributes beyond those of the base."""

    def extended(self, added: Mapping[str, Any]) -> SharedAttributes:
        """Return these and further attributes, of which the exporter only encodes the further ones."""
        result = SharedAttributes(self)
        result.update(added)
        if len(result) == len(self) + len(added):  # no duplicate names
            result.base, result.added = self, added
        return result


def _clean(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes with names and texts that an exporter can encode."""
    return {display_name(name): _clean_value(value) for name, value in attributes.items()}


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return message_text(value)
    return [_clean_value(item) for item in value] if isinstance(value, (list, tuple)) else value


class SpanType:
    """Name, kind and attributes that spans of one type share across attempts."""

    __slots__ = ("attributes", "encoded", "kind", "name")

    def __init__(
        self, name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.name = display_name(name)
        self.kind = kind
        self.attributes = attributes
        self.encoded: bytes | None = None
        """Cache of the exporter."""


class TraceInfo:
    """Trace ID, flags and state that the spans of one attempt share."""

    __slots__ = ("encoded", "flags", "has_state", "is_sampled", "state", "trace_id")

    def __init__(self, context: SpanContext) -> None:
        self.trace_id = context.trace_id
        self.flags = flags = context.trace_flags
        self.state = state = context.trace_state
        self.is_sampled = flags & TraceFlags.SAMPLED != 0
        self.has_state = state is not DEFAULT_TRACE_STATE and bool(state)
        self.encoded: bytes | None = None
        """Cache of the exporter."""


class TraceIds(RandomIdGenerator):
    """Generator of random IDs without the random flag of Trace Context level 2.

    The engine (1.7.12) ignores a ``traceparent`` with an unknown flag and starts a new trace.
    """

    def is_trace_id_random(self) -> bool:
        """Return False, so that the flag is not set."""
        return False


class HandlerSpan(Span):
    """Span of a handler, with the attributes of the SDK's `ReadableSpan` for processors and exporters.

    Args:
        tracer: The tracer that created the span.
        type: The span's type.
        shared: The attributes shared by the spans of the attempt.
        trace_info: The span's trace.
        span_id: The span ID.
        parent_span: The parent; None for the root span.
        start_time: The start time in nanoseconds since 1970.
    """

    # Class attributes, since most spans keep these defaults.
    end_time: int | None = None
    status: Status = UNSET_STATUS
    events: Sequence[Event] = ()
    links: Sequence[Link] = ()
    _context: SpanContext | None = None

    def __init__(  # noqa: PLR0917 - positional, since it is called for each span
        self,
        tracer: HandlerTracer,
        type_: SpanType,
        shared: SharedAttributes,
        trace_info: TraceInfo,
        span_id: int,
        parent_span: HandlerSpan | SpanContext | None,
        start_time: int,
    ) -> None:
        self.tracer = tracer
        self.type = type_
        self.shared = shared
        self.trace_info = trace_info
        self.span_id = span_id
        self.parent_span = parent_span
        self.start_time = start_time
        self.own_attributes: dict[str, Any] = {}

    # --- recording ----------------------------------------------------------------------------------------------------

    def end(self, end_time: int | None = None) -> None:
        """End the span, once."""
        if self.end_time is None:
            self.end_time = time.time_ns() if end_time is None else end_time
            for on_end in self.tracer.provider.on_end_listeners:
                on_end(self)

    def start_child(self, type_: SpanType, shared: SharedAttributes) -> Span:
        """Start a child span."""
        tracer, trace_info = self.tracer, self.trace_info
        if tracer.provider.on_start_listeners or not trace_info.is_sampled:
            return tracer.start(type_, shared, self)
        return HandlerSpan(tracer, type_, shared, trace_info, tracer.new_span_id(), self, time.time_ns())

    def get_span_context(self) -> SpanContext:
        """Return the span context."""
        return self.context

    @property
    def context(self) -> SpanContext:
        """The span context."""
        if self._context is None:  # created on demand, since most are never read
            info = self.trace_info
            self._context = SpanContext(info.trace_id, self.span_id, False, info.flags, info.state)
        return self._context

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set attributes; beyond the limit, the latest ones are kept."""
        if self.end_time is None:
            self.own_attributes.update(attributes)
            if len(self.own_attributes) + len(self.shared) + len(self.type.attributes) > _LIMIT:
                self._drop_attributes()

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set an attribute, see `set_attributes`."""
        self.set_attributes({key: value})

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Add an event; beyond the limit, the latest ones are kept."""
        if self.end_time is None:
            self.dropped_events += len(self.events) == _LIMIT
            self.events = (*self.events[1 - _LIMIT :], Event(display_name(name), _clean(attributes or {}), timestamp))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add a link; beyond the limit, the latest ones are kept."""
        if self.end_time is None and context.is_valid:
            self.dropped_links += len(self.links) == _LIMIT
            self.links = (*self.links[1 - _LIMIT :], Link(context, attributes))

    def update_name(self, name: str) -> None:
        """Change the name."""
        if self.end_time is None:
            self.type = SpanType(name, self.type.kind, self.type.attributes)

    def is_recording(self) -> bool:
        """Return whether the span has not ended."""
        return self.end_time is None

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status; OK is final."""
        if self.end_time is None and self.status.status_code is not StatusCode.OK:
            self.status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an event with the type and message of an exception, without its stack trace, which may contain values."""
        exception_attributes: dict[str, Any] = {
            "exception.type": type(exception).__qualname__,
            "exception.message": message_text(exception),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**exception_attributes, **(attributes or {})}, timestamp)

    # --- reading, by processors and exporters -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name."""
        return self.type.name

    @property
    def kind(self) -> SpanKind:
        """The kind."""
        return self.type.kind

    @property
    def parent(self) -> SpanContext | None:
        """The context of the parent; None for a root span."""
        return self.parent_span.context if isinstance(self.parent_span, HandlerSpan) else self.parent_span

    @property
    def attributes(self) -> Mapping[str, Any]:
        """All attributes."""
        return _clean({**self.shared, **self.type.attributes, **self.own_attributes})

    @property
    def resource(self) -> Resource:
        """The resource of the process."""
        return self.tracer.resource

    @property
    def instrumentation_scope(self) -> InstrumentationScope:
        """The instrumentation scope."""
        return self.tracer.scope

    dropped_attributes = dropped_events = dropped_links = 0

    def _drop_attributes(self) -> None:
        common = {**self.shared, **self.type.attributes}
        own = [name for name in self.own_attributes if name not in common]
        dropped = own[: max(0, len(common) + len(own) - _LIMIT)]
        for name in dropped:
            del self.own_attributes[name]
        self.dropped_attributes += len(dropped)


class HandlerTracer(Tracer):
    """Tracer that creates the spans of handlers."""

    encoded: tuple[bytes, bytes] | None = None
    """Cache of the exporter for resource and scope."""

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
        """Start a span; `SharedAttributes` are shared with other spans, other attributes are copied."""
        current = trace.get_current_span(context)
        parent: HandlerSpan | SpanContext | None = current if type(current) is HandlerSpan else None
        if parent is None and (span_context := current.get_span_context()).is_valid:
            parent = span_context
        shared = attributes if isinstance(attributes, SharedAttributes) else SharedAttributes()
        span = self.start(SpanType(name, kind), shared, parent, start_time, context, links)
        if isinstance(span, HandlerSpan):
            if attributes and attributes is not shared:
                span.set_attributes(attributes)
            span.links = tuple(links or ())
        return span

    def start(  # noqa: PLR0917 - positional, since it is called for many spans
        self,
        type_: SpanType,
        shared: SharedAttributes,
        parent: HandlerSpan | SpanContext | None,
        start_time: int | None = None,
        context: Context | None = None,
        links: Sequence[Link] | None = None,
    ) -> Span:
        """Start a span under a parent; context and links are for the sampler."""
        provider = self.provider
        parent_context: SpanContext | None = parent.context if isinstance(parent, HandlerSpan) else parent
        if parent_context is None or (parent_context.is_remote and not provider.follows_parent):
            span = self._sample(type_, shared, parent_context, start_time, context, links)
        elif parent_context.trace_flags & TraceFlags.SAMPLED:
            info = parent.trace_info if isinstance(parent, HandlerSpan) else TraceInfo(parent_context)
            span = HandlerSpan(self, type_, shared, info, self.new_span_id(), parent, start_time or time.time_ns())
        else:
            return NonRecordingSpan(parent_context)
        if provider.on_start_listeners and isinstance(span, HandlerSpan):
            for on_start in provider.on_start_listeners:
                on_start(cast("SDKSpan", span), context)
        return span

    def _sample(  # noqa: PLR0917 - as `start`
        self,
        type_: SpanType,
        shared: SharedAttributes,
        parent: SpanContext | None,
        start_time: int | None,
        context: Context | None,
        links: Sequence[Link] | None,
    ) -> Span:
        provider = self.provider
        trace_id = provider.id_generator.generate_trace_id() if parent is None else parent.trace_id
        if context is None and parent is not None:
            context = trace.set_span_in_context(NonRecordingSpan(parent), _NO_CONTEXT)
        attributes = {**shared, **type_.attributes}
        result = provider.sampler.should_sample(
            context or _NO_CONTEXT, trace_id, type_.name, type_.kind, attributes, links
        )
        flags = _SAMPLED if result.decision is Decision.RECORD_AND_SAMPLE else _NOT_SAMPLED
        own = SpanContext(trace_id, self.new_span_id(), False, flags, result.trace_state or DEFAULT_TRACE_STATE)
        if result.decision is Decision.DROP:
            return NonRecordingSpan(own)
        span = HandlerSpan(self, type_, shared, TraceInfo(own), own.span_id, parent, start_time or time.time_ns())
        span.own_attributes.update(result.attributes or {})
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
        """Start a span that is current in a block, see `opentelemetry.trace.use_span`."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        return trace.use_span(span, end_on_exit, record_exception, set_status_on_exception)


class HandlerTracerProvider(TracerProvider):
    """The SDK's provider with a `HandlerTracer` for handlers.

    Args:
        resource: The resource of the process.
        id_generator: The generator of trace and span IDs.
        sampler: The sampler; by default that of OpenTelemetry's standard variables.
    """

    def __init__(self, resource: Resource, id_generator: IdGenerator, sampler: Sampler | None = None) -> None:
        super().__init__(sampler=sampler, resource=resource, id_generator=id_generator)
        # The SDK's default samplers follow the parent, so the costly call is unnecessary.
        self.follows_parent = self.sampler is DEFAULT_ON or self.sampler is DEFAULT_OFF
        self._has_custom_limits = vars(SpanLimits()) != vars(_DEFAULT_LIMITS)
        self.on_start_listeners: tuple[Callable[[SDKSpan, Context | None], None], ...] = ()
        self.on_end_listeners: tuple[Callable[[Any], None], ...] = ()

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """Add a processor for all spans."""
        super().add_span_processor(span_processor)
        if type(span_processor).on_start not in _EMPTY_ON_START:
            self.on_start_listeners = (*self.on_start_listeners, span_processor.on_start)
        self.on_end_listeners = (*self.on_end_listeners, span_processor.on_end)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        """Return a tracer; with custom limits, the SDK's, which supports all of them."""
        if instrumenting_module_name == SCOPE and not self._has_custom_limits:
            return HandlerTracer(self)
        return super().get_tracer(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
