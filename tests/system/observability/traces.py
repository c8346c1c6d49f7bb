"""Trace trees of received spans."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.system.observability.receiver import ReceivedSpan

_KEY = "perdure.key"
_ENGINE = "Restate"


@dataclass(frozen=True)
class TraceTree:
    """Spans of one trace, ordered by start."""

    trace_id: str
    spans: tuple[ReceivedSpan, ...]

    @property
    def is_connected(self) -> bool:
        """Whether every span except the root has its parent, since spans arrive with delays."""
        ids = {span.span_id for span in self.spans}
        return sum(span.parent_id not in ids for span in self.spans) == 1

    @property
    def is_complete(self) -> bool:
        """Whether the tree is connected, starts at the ingress, and contains the spans of all called services."""
        parents = {span.parent_id for span in self.spans}
        answered = all(span.span_id in parents for span in self.spans if span.name.startswith("invocation-attempt"))
        return self.is_connected and answered and any(span.name.startswith("ingress") for span in self.spans)

    def path(self, span: ReceivedSpan) -> list[ReceivedSpan]:
        """Return the spans from the root to a span, inclusive."""
        by_id = {each.span_id: each for each in self.spans}
        path, current = [span], span
        while current.parent_id is not None and current.parent_id in by_id and by_id[current.parent_id] not in path:
            current = by_id[current.parent_id]
            path.append(current)
        return path[::-1]

    def walk(self) -> Iterator[tuple[int, ReceivedSpan]]:
        """Yield depth and span of the tree in preorder; siblings are ordered by start."""
        ids = {span.span_id for span in self.spans}
        children: defaultdict[str | None, list[ReceivedSpan]] = defaultdict(list)
        for span in self.spans:
            children[span.parent_id if span.parent_id in ids else None].append(span)

        def walk_below(parent: str | None, depth: int) -> Iterator[tuple[int, ReceivedSpan]]:
            for span in children.pop(parent, []):
                yield depth, span
                yield from walk_below(span.span_id, depth + 1)

        return walk_below(None, 0)


def tree_of(spans: Iterable[ReceivedSpan], trace_id: str) -> TraceTree:
    """Return the tree of a trace."""
    by_id = {span.span_id: span for span in spans if span.trace_id == trace_id}  # retries may send a span twice
    return TraceTree(trace_id, tuple(sorted(by_id.values(), key=lambda span: (span.start, -span.end))))


def trace_of(spans: list[ReceivedSpan], key: str) -> TraceTree | None:
    """Return the trace with the first call of a workflow or object key; None if there is none yet."""
    first = min((span for span in spans if span.attributes.get(_KEY) == key), key=lambda span: span.start, default=None)
    return None if first is None else tree_of(spans, first.trace_id)


def linked_to(spans: list[ReceivedSpan], tree: TraceTree) -> list[TraceTree]:
    """Return the traces with a link to a trace, such as that of its rollback, ordered by start."""
    ids = {span.trace_id for span in spans if any(trace_id == tree.trace_id for trace_id, _ in span.links)}
    trees = [tree_of(spans, trace_id) for trace_id in ids - {tree.trace_id}]
    return sorted(trees, key=lambda each: each.spans[0].start)


def lines(tree: TraceTree) -> list[str]:
    """Return an indented line per span, with process, duration, start and error."""
    start = tree.spans[0].start if tree.spans else 0
    output = []
    for depth, span in tree.walk():
        details = [f"{(span.end - span.start) / 1e6:.1f} ms", f"at {(span.start - start) / 1e6:.1f}"]
        if span.attributes.get("perdure.interrupted"):
            details.append("interrupted")
        if span.error is not None:
            details.append(f"FAILED: {span.error or span.attributes.get('error.type', 'unknown error')}")
        process = "engine" if span.service == _ENGINE else span.service
        output.append(f"{'  ' * depth}{span.name}  [{process}]  {', '.join(details)}")
    return output
