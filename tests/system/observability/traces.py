"""The spans of one trip as a tree, from the ingress to the last query."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.system.observability.receiver import ReceivedSpan

_KEY = "perdure.key"
_ENGINE = "Restate"


@dataclass(frozen=True)
class TraceTree:
    """The spans of one trace.

    Args:
        trace_id: Which one.
        spans: Its spans, in the order in which they began.
    """

    trace_id: str
    spans: tuple[ReceivedSpan, ...]

    @property
    def complete(self) -> bool:
        """True when every span but one has its parent here: senders wait a moment, each as long as it likes."""
        known = {span.span_id for span in self.spans}
        return sum(span.parent_id not in known for span in self.spans) == 1

    @property
    def whole(self) -> bool:
        """True when it is complete from the ingress on, and every service that was called has sent its part, too."""
        parents = {span.parent_id for span in self.spans}
        answered = all(span.span_id in parents for span in self.spans if span.name.startswith("invocation-attempt"))
        return self.complete and answered and any(span.name.startswith("ingress") for span in self.spans)

    def path(self, span: ReceivedSpan) -> list[ReceivedSpan]:
        """Return the spans from the root to a span, which is the last one.

        Args:
            span: One of this trace.
        """
        by_id = {each.span_id: each for each in self.spans}
        path, at = [span], span
        while at.parent_id is not None and at.parent_id in by_id and by_id[at.parent_id] not in path:
            at = by_id[at.parent_id]
            path.append(at)
        return path[::-1]

    def walk(self) -> Iterator[tuple[int, ReceivedSpan]]:
        """Go through the tree from the root, with the depth of each span; children in the order in which they began."""
        known = {span.span_id for span in self.spans}
        below: defaultdict[str | None, list[ReceivedSpan]] = defaultdict(list)
        for span in self.spans:
            below[span.parent_id if span.parent_id in known else None].append(span)

        def under(parent: str | None, depth: int) -> Iterator[tuple[int, ReceivedSpan]]:
            for span in below.pop(parent, []):
                yield depth, span
                yield from under(span.span_id, depth + 1)

        return under(None, 0)


def tree_of(spans: Iterable[ReceivedSpan], trace_id: str) -> TraceTree:
    """Return one trace.

    Args:
        spans: Spans of any traces.
        trace_id: Which one.
    """
    found = {span.span_id: span for span in spans if span.trace_id == trace_id}  # a sender that is not sure sends twice
    return TraceTree(trace_id, tuple(sorted(found.values(), key=lambda span: (span.start, -span.end))))


def trace_of(spans: list[ReceivedSpan], key: str) -> TraceTree | None:
    """Return the trace in which a workflow or object was first called.

    Args:
        spans: Spans of any traces.
        key: Its key, for example a trip's id.

    Returns:
        None when there is none yet.
    """
    first = min((span for span in spans if span.attributes.get(_KEY) == key), key=lambda span: span.start, default=None)
    return None if first is None else tree_of(spans, first.trace_id)


def linked_to(spans: list[ReceivedSpan], tree: TraceTree) -> list[TraceTree]:
    """Return the traces with a link to a trace, such as those of its rollback, in the order in which they began.

    Args:
        spans: Spans of any traces.
        tree: Where the links lead.
    """
    ids = {span.trace_id for span in spans if any(trace_id == tree.trace_id for trace_id, _ in span.links)}
    trees = [tree_of(spans, trace_id) for trace_id in ids - {tree.trace_id}]
    return sorted(trees, key=lambda each: each.spans[0].start)


def lines(tree: TraceTree) -> list[str]:
    """Return a trace as text: a line for each span, indented, with who did it, how long it took and what went wrong.

    Args:
        tree: The trace.
    """
    began = tree.spans[0].start if tree.spans else 0
    shown = []
    for depth, span in tree.walk():
        facts = [f"{(span.end - span.start) / 1e6:.1f} ms", f"at {(span.start - began) / 1e6:.1f}"]
        if span.attributes.get("perdure.interrupted"):
            facts.append("interrupted")
        if span.error is not None:
            facts.append(f"FAILED: {span.error or span.attributes.get('error.type', 'it does not say why')}")
        who = "engine" if span.service == _ENGINE else span.service
        shown.append(f"{'  ' * depth}{span.name}  [{who}]  {', '.join(facts)}")
    return shown
