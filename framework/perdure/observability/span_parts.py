"""What spans of handlers have in common: with those of their attempt, of their sort, and of their trace.

Each is kept once, and an exporter writes it once: most of a span's bytes are its companions', too.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import DEFAULT_TRACE_STATE

__all__ = ["LocalTrace", "SharedAttributes", "SpanSort"]


class SharedAttributes(dict[str, Any]):
    """Attributes that the spans of one attempt have in common. Never changed once a span has them."""

    encoded: bytes | None = None
    """What an exporter made of them, kept by it for the next span that has them."""

    base: SharedAttributes | None = None
    """Those that these were made of, if none of them has another value here."""

    more: Mapping[str, Any] = MappingProxyType({})
    """What they have beside their base's."""

    def with_more(self, more: Mapping[str, Any]) -> SharedAttributes:
        """Return these and others, of which an exporter has only the others to write.

        Args:
            more: The others.
        """
        joined = SharedAttributes(self)
        joined.update(more)
        if len(joined) == len(self) + len(more):  # no name is told twice
            joined.base, joined.more = self, more
        return joined


class SpanSort:
    """What spans of one sort have in common, whatever attempt they belong to.

    Args:
        name: What is done.
        kind: Its side of a call.
        attributes: Facts that the name tells already, for those who search by them.
    """

    __slots__ = ("attributes", "encoded", "kind", "name")

    def __init__(
        self, name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.name = name
        self.kind = kind
        self.attributes = attributes
        self.encoded: bytes | None = None
        """What an exporter made of it, kept by it for the next span of its sort."""


class LocalTrace:
    """A trace, as it is the same for the spans of one attempt.

    Args:
        ids: The ids of one of its spans.
    """

    __slots__ = ("encoded", "flags", "is_kept", "is_plain", "state", "trace_id")

    def __init__(self, ids: SpanContext) -> None:
        self.trace_id = ids.trace_id
        self.flags = flags = ids.trace_flags
        self.state = state = ids.trace_state
        self.is_kept = flags & TraceFlags.SAMPLED != 0
        self.is_plain = state is DEFAULT_TRACE_STATE or not state
        self.encoded: bytes | None = None
        """What an exporter made of its id, kept by it for the next of its spans."""
