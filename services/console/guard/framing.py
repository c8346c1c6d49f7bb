"""Where a request's body ends: refuses requests that two readers could cut in different places.

A proxy and the console that disagree on the end of a body take the rest for the next request, in another caller's name.
h11 refuses most of what is ambiguous by itself, but takes a `Content-Length` beside a `Transfer-Encoding`, the same
`Content-Length` twice, folded header lines, and chunks in HTTP/1.0.
"""

from __future__ import annotations

import re
from typing import Any, Final

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

_END: Final = re.compile(rb"\n\r?\n")
_LINE: Final = re.compile(rb"\r?\n")
_LONGEST_HEAD: Final = 64 * 1024  # as uvicorn has it
_LENGTH, _ENCODING = b"content-length", b"transfer-encoding"


def ambiguity(received: bytes) -> str | None:
    """Return why the end of a request's body is ambiguous; None when it isn't, or its headers are not complete.

    Args:
        received: What was received, from the request line on.
    """
    end = _END.search(received)
    if end is None:
        return None
    request, *lines = _LINE.split(received[: end.start()])
    if any(line[:1] in (b" ", b"\t") for line in lines):
        return "a header line is folded"
    fields = [(name.strip().lower(), value) for name, _, value in (line.partition(b":") for line in lines)]
    lengths = [value for name, value in fields if name == _LENGTH]
    encodings = [value for name, value in fields if name == _ENCODING]
    if len(lengths) + len(encodings) > 1 or any(b"," in value for value in lengths):
        return "there is more than one Content-Length or Transfer-Encoding"
    if encodings and request.rstrip().endswith(b"HTTP/1.0"):
        return "there is a Transfer-Encoding in HTTP/1.0"
    return None


class _Connection(h11.Connection):
    """An HTTP/1.1 connection that takes requests with one reading only."""

    def next_event(self) -> Any:
        """Return the next event, or refuse the next request.

        Raises:
            RemoteProtocolError: The request can't be read, or not in one way only.
        """
        if self.their_state is h11.IDLE and (why := ambiguity(self.trailing_data[0])) is not None:
            raise h11.RemoteProtocolError(why)
        return super().next_event()


class UnambiguousHttp(H11Protocol):
    """uvicorn's HTTP protocol, answering 400 where the end of a body is ambiguous. See the module."""

    def __init__(self, config: Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.conn = _Connection(h11.SERVER, config.h11_max_incomplete_event_size or _LONGEST_HEAD)
