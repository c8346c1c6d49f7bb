"""Parsing of the gateway's paths. Pure, without engine.

A path is parsed as sent, before any decoding: if two parsers decode differently, a request can reach a handler that was
not checked. The forwarded path is built anew from the parsed parts.
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

Operation = Literal["call", "send", "attach", "output"]

_MAX_PATH: Final = 4096
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
_MAX_DELAY: Final = timedelta(days=3650)
_PART: Final = re.compile(r"(\d{1,9})(ms|[smhd])")
_PARTS: Final = re.compile(rf"(?:{_PART.pattern})+")
_ISO: Final = TypeAdapter(timedelta)


@dataclass(frozen=True)
class GatewayRequest:
    """A parsed path.

    Args:
        operation: Call a handler, send to it without waiting, attach to a workflow, or get a workflow's output.
        service: The service.
        key: The key of a virtual object or workflow.
        handler: The handler; ``run`` for attach and output.
        delay: The delay of a send, in the ingress's notation.
    """

    operation: Operation
    service: str
    key: str | None
    handler: str
    delay: str | None = None

    @property
    def delay_duration(self) -> timedelta:
        """The delay as a duration."""
        return timedelta(0) if self.delay is None else _duration(self.delay)

    @property
    def name(self) -> str:
        """The handler's name as in API keys: ``Trips/run``."""
        return f"{self.service}/{self.handler}"

    @property
    def method(self) -> str:
        """The HTTP method."""
        return "POST" if self.operation in ("call", "send") else "GET"

    @property
    def path(self) -> str:
        """The path at the ingress, with its query."""
        service = path_segment(self.service)
        if self.operation in ("attach", "output"):
            return f"/restate/workflow/{service}/{path_segment(self.key or '')}/{self.operation}"
        middle = "" if self.key is None else f"/{path_segment(self.key)}"
        sent = "/send" if self.operation == "send" else ""
        delay = f"?delay={self.delay}" if self.delay else ""
        return f"/{service}{middle}/{path_segment(self.handler)}{sent}{delay}"


def parse_path(raw_path: bytes, query: bytes, keyed: frozenset[str]) -> GatewayRequest:
    """Parse a path and query as sent; `keyed` are the services whose handlers have a key.

    Raises:
        ConsoleError: The path is invalid or ambiguous (400), or too long (414).
    """
    segments = _segments(raw_path)
    request = _workflow_request(segments) if segments[0] == _RESTATE else _handler_request(segments, keyed)
    if not _NAME.fullmatch(request.service) or not _NAME.fullmatch(request.handler):
        raise _invalid("names of services and handlers have letters, digits and -_.")
    if not query:
        return request
    delay = _DELAY.fullmatch(query)
    if delay is None or request.operation != "send":
        raise _invalid("the only permitted query is ?delay=10s, with /send")
    try:
        _duration(delay[1].decode())
    except (ValueError, OverflowError) as error:
        raise _invalid("the delay must be written as 10s, 1h30m or PT10S, up to ten years") from error
    return GatewayRequest(request.operation, request.service, request.key, request.handler, delay[1].decode())


def _duration(text: str) -> timedelta:
    """Parse a duration in the ingress's notation or ISO 8601.

    Raises:
        ValueError: The notation is invalid, or the duration negative or too long.
        OverflowError: The duration is far too long.
    """
    if _PARTS.fullmatch(text):
        duration = sum((int(number) * _UNITS[unit] for number, unit in _PART.findall(text)), timedelta(0))
    else:
        duration = _ISO.validate_python(text if text.startswith("P") else None)
    if not timedelta(0) <= duration <= _MAX_DELAY:
        raise ValueError(text)
    return duration


def _segments(raw_path: bytes) -> list[str]:
    start = f"{PREFIX}/".encode()
    if len(raw_path) > _MAX_PATH:
        raise ConsoleError(414, "invalid_path", f"a path may have at most {_MAX_PATH} bytes")
    if not raw_path.startswith(start) or not _ALLOWED.fullmatch(raw_path):
        raise _invalid("it contains a character that must be percent-encoded, or is not permitted")
    segments = []
    for part in raw_path.removeprefix(start).split(b"/"):
        try:
            text = unquote_to_bytes(part).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _invalid("it is not UTF-8") from error
        if text in ("", ".", ".."):
            raise _invalid("it has an empty segment, or a segment of dots")
        if "/" in text or "\\" in text or not text.isprintable():
            raise _invalid("a segment contains a slash, a backslash or an unprintable character")
        segments.append(text)
    return segments


def _workflow_request(segments: list[str]) -> GatewayRequest:
    if len(segments) == 5 and segments[1] == "workflow":
        service, key, operation = segments[2:]
        if operation == "attach":
            return GatewayRequest("attach", service, key, "run")
        if operation == "output":
            return GatewayRequest("output", service, key, "run")
    raise _invalid(
        f"of the engine's own paths, only {PREFIX}/restate/workflow/SERVICE/KEY/attach and …/output are available"
    )


def _handler_request(segments: list[str], keyed: frozenset[str]) -> GatewayRequest:
    service, *rest = segments
    operation: Operation = "call"
    length = 2 if service in keyed else 1
    if len(rest) == length + 1 and rest[-1] == "send":
        operation = "send"
        rest.pop()
    if len(rest) != length:
        form = "SERVICE/KEY/HANDLER" if service in keyed else "SERVICE/HANDLER"
        raise _invalid(f"the form is {PREFIX}/{form}, or …/send")
    return GatewayRequest(operation, service, rest[0] if length == 2 else None, rest[-1])


def _invalid(reason: str) -> ConsoleError:
    return ConsoleError(400, "invalid_path", f"invalid path: {reason}")
