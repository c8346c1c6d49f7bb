"""A dead letter's payload as people edit it: read, written, and compared with the one there is.

Whoever edits says how large a payload is, how deep and how often the same. So what is written and compared has a bound,
and within it no two payloads take long.
"""

from __future__ import annotations

import json
from typing import Final

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from perdure.security.encodings import canonical_json
from services.console.problems import ConsoleError, invalid

MOST_LINES: Final = 5_000
"""How many lines a payload may have that is written with a line for each value."""

MOST_CHARACTERS: Final = 500_000
"""How many characters it may have. Deep down, most of a line is indentation: 400 KB of JSON can be 60 MB of lines."""

_MOST_CHANGES: Final = 2_000
_writer: Final = json.JSONEncoder(indent=2, ensure_ascii=False)
_json: Final[TypeAdapter[JsonValue]] = TypeAdapter(JsonValue)


class DiffLine(BaseModel):
    """One line of the difference between two payloads.

    Args:
        kind: ``same``, ``gone`` or ``new``.
        text: The line.
    """

    kind: str
    text: str


def read_payload(text: str) -> JsonValue:
    """Return an edited payload.

    Args:
        text: JSON.

    Raises:
        ConsoleError: It is none, or nested deeper than any service would take it.
    """
    try:
        payload: JsonValue = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the payload is no JSON: {error}") from error
    if payload is None:
        raise invalid("the payload is null, which would keep the one there is: redrive without editing instead")
    try:
        return _json.validate_python(payload)
    except ValidationError as error:  # what was read from JSON can be wrong in its depth only
        raise invalid("the payload is nested too deep") from error


def _no_number(name: str) -> JsonValue:
    raise ValueError(f"{name} is no JSON number")


def written(payload: JsonValue) -> str:
    """Return a payload as people edit it: with a line for each value, or on one line when these would be too many.

    Args:
        payload: The payload.
    """
    in_lines = _in_lines(payload)
    return json.dumps(payload, ensure_ascii=False) if in_lines is None else in_lines


def difference(before: JsonValue, after: JsonValue) -> list[DiffLine]:
    """Return how two payloads differ, line by line; empty when they don't.

    It takes seconds at worst, which the event loop does not have.

    Args:
        before: What there is.
        after: What is to be sent.

    Raises:
        ConsoleError: One of them is too large to be compared.
    """
    old, new = _lines(before, "the payload there is"), _lines(after, "the new payload")
    if canonical_json(before) == canonical_json(after):  # to Python, 1 and true are equal
        return []
    return _edits(old, new)


def _lines(payload: JsonValue, which: str) -> list[str]:
    in_lines = _in_lines(payload)
    if in_lines is None:
        raise ConsoleError(
            422,
            "too_large",
            f"{which} has more than {MOST_LINES:,} lines or {MOST_CHARACTERS:,} characters when it is written with a "
            "line for each value, and that much is not compared; `perdure dead-letters redrive --payload @FILE` sends "
            "it without comparing",
        )
    return in_lines.split("\n")


def _in_lines(payload: JsonValue) -> str | None:
    """Return a payload with a line for each value; None as soon as it is over the bounds."""
    parts: list[str] = []
    lines, characters = 1, 0
    for part in _writer.iterencode(payload):
        lines += part.count("\n")
        characters += len(part)
        if lines > MOST_LINES or characters > MOST_CHARACTERS:
            return None
        parts.append(part)
    return "".join(parts)


def _edits(old: list[str], new: list[str]) -> list[DiffLine]:
    begin, end = 0, 0
    shorter = min(len(old), len(new))
    while begin < shorter and old[begin] == new[begin]:
        begin += 1
    while end < shorter - begin and old[-1 - end] == new[-1 - end]:
        end += 1
    runs = _kept(old[begin : len(old) - end], new[begin : len(new) - end])
    runs = [(0, 0, begin), *((x + begin, y + begin, size) for x, y, size in runs)]
    runs.append((len(old) - end, len(new) - end, end))
    edits: list[DiffLine] = []
    at_old = at_new = 0
    for x, y, size in runs:
        edits += [DiffLine(kind="gone", text=line) for line in old[at_old:x]]
        edits += [DiffLine(kind="new", text=line) for line in new[at_new:y]]
        edits += [DiffLine(kind="same", text=line) for line in old[x : x + size]]
        at_old, at_new = x + size, y + size
    return edits


class _Run:
    """Lines that are kept: where they are in the old text and in the new, how many, and those before."""

    __slots__ = ("before", "size", "x", "y")

    def __init__(self, x: int, y: int, size: int, before: _Run | None) -> None:
        self.x, self.y, self.size, self.before = x, y, size, before


def _kept(old: list[str], new: list[str]) -> list[tuple[int, int, int]]:
    """Return the runs of lines that are kept with the fewest changes; none when these are too many to be looked for.

    It is the greedy algorithm of Myers (1986). That of difflib takes minutes where lines are alike, hours with
    `ndiff`; this one needs as long as there are changes, squared, and those have a bound.
    """
    reach: dict[int, tuple[int, _Run | None]] = {1: (0, None)}
    for changes in range(min(len(old) + len(new), _MOST_CHANGES) + 1):
        for diagonal in range(-changes, changes + 1, 2):
            is_insertion = diagonal == -changes or (
                diagonal != changes and reach[diagonal - 1][0] < reach[diagonal + 1][0]
            )
            x, run = reach[diagonal + 1] if is_insertion else reach[diagonal - 1]
            if not is_insertion:
                x += 1
            begin = x
            while x < len(old) and x - diagonal < len(new) and old[x] == new[x - diagonal]:
                x += 1
            if x > begin:
                run = _Run(begin, begin - diagonal, x - begin, run)
            reach[diagonal] = (x, run)
            if x >= len(old) and x - diagonal >= len(new):
                return _in_order(run)
    return []


def _in_order(run: _Run | None) -> list[tuple[int, int, int]]:
    runs = []
    while run is not None:
        runs.append((run.x, run.y, run.size))
        run = run.before
    return runs[::-1]
