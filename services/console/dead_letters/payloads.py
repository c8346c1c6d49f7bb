"""Payloads of dead letters: parsing, formatting and comparing edited JSON.

Size, depth and repetition of a payload are under the editor's control. Formatting and comparison are therefore bounded,
and fast for any payload within the bounds.
"""

from __future__ import annotations

import json
from typing import Final

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from perdure.security.encodings import canonical_json
from services.console.problems import ConsoleError, invalid

MAX_LINES: Final = 5_000
"""The maximal number of lines of an indented payload."""

MAX_CHARACTERS: Final = 500_000
"""The maximal number of characters. Indentation can turn 400 KB of deeply nested JSON into 60 MB."""

_MAX_CHANGES: Final = 2_000
_writer: Final = json.JSONEncoder(indent=2, ensure_ascii=False)
_json: Final[TypeAdapter[JsonValue]] = TypeAdapter(JsonValue)


class DiffLine(BaseModel):
    """A line of a diff; `kind` is ``same``, ``removed`` or ``added``."""

    kind: str
    text: str


def parse(text: str) -> JsonValue:
    """Parse an edited payload.

    Raises:
        ConsoleError: It is not JSON, null, or nested too deeply for any service.
    """
    try:
        payload: JsonValue = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the payload is not JSON: {error}") from error
    if payload is None:
        raise invalid("the payload is null, which keeps the current one; redrive without editing instead")
    try:
        return _json.validate_python(payload)
    except ValidationError as error:  # only depth can be invalid in parsed JSON
        raise invalid("the payload is nested too deeply") from error


def _reject_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not a JSON number")


def format_payload(payload: JsonValue) -> str:
    """Return a payload as indented JSON, or on one line when it exceeds the bounds."""
    indented = _indented(payload)
    return json.dumps(payload, ensure_ascii=False) if indented is None else indented


def diff(before: JsonValue, after: JsonValue) -> list[DiffLine]:
    """Return the diff of two payloads, line by line; empty if they are equal.

    It can take seconds, so run it in a thread.

    Raises:
        ConsoleError: A payload is too large.
    """
    old, new = _lines(before, "the current payload"), _lines(after, "the new payload")
    if canonical_json(before) == canonical_json(after):  # Python's == treats 1 and true as equal
        return []
    return _edits(old, new)


def _lines(payload: JsonValue, which: str) -> list[str]:
    indented = _indented(payload)
    if indented is None:
        raise ConsoleError(
            422,
            "too_large",
            f"{which} exceeds {MAX_LINES:,} lines or {MAX_CHARACTERS:,} characters when indented, so it is not "
            "compared; `perdure dead-letters redrive --payload @FILE` sends it without comparison",
        )
    return indented.split("\n")


def _indented(payload: JsonValue) -> str | None:
    """Return a payload as indented JSON; None when it exceeds the bounds."""
    parts: list[str] = []
    lines, characters = 1, 0
    for part in _writer.iterencode(payload):
        lines += part.count("\n")
        characters += len(part)
        if lines > MAX_LINES or characters > MAX_CHARACTERS:
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
    runs = _common_runs(old[begin : len(old) - end], new[begin : len(new) - end])
    runs = [(0, 0, begin), *((x + begin, y + begin, size) for x, y, size in runs)]
    runs.append((len(old) - end, len(new) - end, end))
    edits: list[DiffLine] = []
    at_old = at_new = 0
    for x, y, size in runs:
        edits += [DiffLine(kind="removed", text=line) for line in old[at_old:x]]
        edits += [DiffLine(kind="added", text=line) for line in new[at_new:y]]
        edits += [DiffLine(kind="same", text=line) for line in old[x : x + size]]
        at_old, at_new = x + size, y + size
    return edits


class _Run:
    """A run of common lines: its positions in the old and new text, its length, and the previous run."""

    __slots__ = ("previous", "size", "x", "y")

    def __init__(self, x: int, y: int, size: int, previous: _Run | None) -> None:
        self.x, self.y, self.size, self.previous = x, y, size, previous


def _common_runs(old: list[str], new: list[str]) -> list[tuple[int, int, int]]:
    """Return the runs of common lines of a minimal diff; none when it has too many changes.

    This is the greedy algorithm of Myers (1986), quadratic in the number of changes, which is bounded. difflib takes
    minutes for repetitive lines, and `ndiff` hours.
    """
    reach: dict[int, tuple[int, _Run | None]] = {1: (0, None)}
    for changes in range(min(len(old) + len(new), _MAX_CHANGES) + 1):
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
        run = run.previous
    return runs[::-1]
