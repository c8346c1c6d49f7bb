"""Protection against HTTP request smuggling.

If a proxy and the console disagree on where a body ends, the rest is taken for another client's request. h11 rejects
most ambiguous requests, but accepts a `Content-Length` next to a `Transfer-Encoding`, a repeated `Content-Length`,
folded header lines, and chunks in HTTP/1.0.
"""

from __future__ import annotations

import re
from typing import Any, Final

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

_END: Final = re.compile(rb"\n\r?\n")
_LINE: Final = re.compile(rb"\r?\n")
_MAX_HEAD: Final = 64 * 1024  # uvicorn's default
_LENGTH, _ENCODING = b"content-length", b"transfer-encoding"


def ambiguity(received: bytes) -> str | None:
    """Return why the end of a request's body is ambiguous; None if it is not, or the headers are incomplete."""
    end = _END.search(received)
    if end is None:
        return None
    request, *lines = _LINE.split(received[: end.start()])
    if any(line[:1] in (b" ", b"\t") for line in lines):
        return "folded header line"
    fields = [(name.strip().lower(), value) for name, _, value in (line.partition(b":") for line in lines)]
    lengths = [value for name, value in fields if name == _LENGTH]
    encodings = [value for name, value in fields if name == _ENCODING]
    if len(lengths) + len(encodings) > 1 or any(b"," in value for value in lengths):
        return "more than one Content-Length or Transfer-Encoding"
    if encodings and request.rstrip().endswith(b"HTTP/1.0"):
        return "Transfer-Encoding in HTTP/1.0"
    return None


class _Connection(h11.Connection):
    """An HTTP/1.1 connection that rejects ambiguous requests."""

    def next_event(self) -> Any:
        """Return the next event.

        Raises:
            RemoteProtocolError: The request is invalid or ambiguous.
        """
        if self.their_state is h11.IDLE and (reason := ambiguity(self.trailing_data[0])) is not None:
            raise h11.RemoteProtocolError(reason)
        return super().next_event()


class UnambiguousHttp(H11Protocol):
    """uvicorn's HTTP protocol, which answers ambiguous requests with 400."""

    def __init__(self, config: Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.conn = _Connection(h11.SERVER, config.h11_max_incomplete_event_size or _MAX_HEAD)
