"""What a path at the gateway may look like, and which handler it means. Nothing here looks at an engine.

A path is taken as it was sent, before anything decodes it: two readers that decode differently are how a request gets
somewhere that nobody checked. What is sent on is written anew from its parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from pydantic import TypeAdapter

from perdure.engine.ingress_requests import path_segment
from services.console.problems import ConsoleError

PREFIX: Final = "/gateway"

Way = Literal["call", "send", "attach", "output"]

_LONGEST: Final = 4096
_ALLOWED: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
_DELAY: Final = re.compile(rb"delay=([A-Za-z0-9.]{1,32})")
_RESTATE: Final = "restate"
_UNITS: Final = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_LONGEST_DELAY: Final = timedelta(days=3650)
_PART: Final = re.compile(r"(\d{1,9})(ms|[smhd])")
_PARTS: Final = re.compile(rf"(?:{_PART.pattern})+")
_ISO: Final = TypeAdapter(timedelta)


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Args:
        way: To call a handler, to send to it without waiting, to attach to a workflow, or to get its output.
        service: The service.
        key: The key of a virtual object or workflow; None without one.
        handler: The handler; for the last two ways it is the workflow's ``run``.
        delay: How much later what is sent begins, as the ingress reads it; None for now.
    """

    way: Way
    service: str
    key: str | None
    handler: str
    delay: str | None = None

    @property
    def waits(self) -> timedelta:
        """How much later what is sent begins."""
        return timedelta(0) if self.delay is None else _duration(self.delay)

    @property
    def name(self) -> str:
        """The handler's name, as rights are given to it: ``Trips/run``."""
        return f"{self.service}/{self.handler}"

    @property
    def method(self) -> str:
        """The method of the request."""
        return "POST" if self.way in ("call", "send") else "GET"

    @property
    def path(self) -> str:
        """The path at the ingress, with its query."""
        service = path_segment(self.service)
        if self.way in ("attach", "output"):
            return f"/restate/workflow/{service}/{path_segment(self.key or '')}/{self.way}"
        middle = "" if self.key is None else f"/{path_segment(self.key)}"
        sent = "/send" if self.way == "send" else ""
        delay = f"?delay={self.delay}" if self.delay else ""
        return f"/{service}{middle}/{path_segment(self.handler)}{sent}{delay}"


def read_path(raw_path: bytes, query: bytes, keyed: frozenset[str]) -> Asked:
    """Return what a path asks for.

    Args:
        raw_path: The path as it was sent.
        query: The query as it was sent.
        keyed: The services whose handlers have a key.

    Raises:
        ConsoleError: It is no path of the gateway, or could be read in two ways (400).
    """
    segments = _segments(raw_path)
    asked = _of_workflow(segments) if segments[0] == _RESTATE else _of_handler(segments, keyed)
    if not _NAME.fullmatch(asked.service) or not _NAME.fullmatch(asked.handler):
        raise _refused("a service and a handler have letters, digits and -_. in their names")
    if not query:
        return asked
    delay = _DELAY.fullmatch(query)
    if delay is None or asked.way != "send":
        raise _refused("a query may be nothing but ?delay=10s, of what is sent")
    try:
        _duration(delay[1].decode())
    except (ValueError, OverflowError) as error:
        raise _refused("write the delay as 10s, 1h30m or PT10S, up to ten years") from error
    return Asked(asked.way, asked.service, asked.key, asked.handler, delay[1].decode())


def _duration(text: str) -> timedelta:
    """Return a duration as the ingress reads it, in parts or in ISO 8601.

    Raises:
        ValueError: It is written in another way, negative, or too long.
        OverflowError: It is far too long.
    """
    if _PARTS.fullmatch(text):
        duration = sum((int(number) * _UNITS[unit] for number, unit in _PART.findall(text)), timedelta(0))
    else:
        duration = _ISO.validate_python(text if text.startswith("P") else None)
    if not timedelta(0) <= duration <= _LONGEST_DELAY:
        raise ValueError(text)
    return duration


def _segments(raw_path: bytes) -> list[str]:
    start = f"{PREFIX}/".encode()
    if len(raw_path) > _LONGEST:
        raise ConsoleError(414, "path_refused", f"a path here has at most {_LONGEST} bytes")
    if not raw_path.startswith(start) or not _ALLOWED.fullmatch(raw_path):
        raise _refused("it holds a character that has to be written as %XX, or none that belongs there")
    segments = []
    for part in raw_path.removeprefix(start).split(b"/"):
        try:
            text = unquote_to_bytes(part).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _refused("it is no UTF-8") from error
        if text in ("", ".", ".."):
            raise _refused("it has an empty segment, or one of dots")
        if "/" in text or "\\" in text or not text.isprintable():
            raise _refused("a segment holds a slash, a backslash or something that can't be printed")
        segments.append(text)
    return segments


def _of_workflow(segments: list[str]) -> Asked:
    if len(segments) == 5 and segments[1] == "workflow":
        service, key, way = segments[2:]
        if way == "attach":
            return Asked("attach", service, key, "run")
        if way == "output":
            return Asked("output", service, key, "run")
    raise _refused(f"of the engine's own, there are {PREFIX}/restate/workflow/SERVICE/KEY/attach and …/output only")


def _of_handler(segments: list[str], keyed: frozenset[str]) -> Asked:
    service, *rest = segments
    way: Way = "call"
    length = 2 if service in keyed else 1
    if len(rest) == length + 1 and rest[-1] == "send":
        way = "send"
        rest.pop()
    if len(rest) != length:
        form = "SERVICE/KEY/HANDLER" if service in keyed else "SERVICE/HANDLER"
        raise _refused(f"write it as {PREFIX}/{form}, or …/send")
    return Asked(way, service, rest[0] if length == 2 else None, rest[-1])


def _refused(why: str) -> ConsoleError:
    return ConsoleError(400, "path_refused", f"this path is not taken: {why}")
