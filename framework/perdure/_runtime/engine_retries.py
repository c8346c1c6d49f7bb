"""Retries as the engine counts them, from the first message of an attempt. The SDK does not expose the numbers.

The engine counts all attempts since the last journal entry, also those that ended with their process or connection.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from perdure._runtime.asgi import Message, Receive

_HEADER: Final = 8  # type, flags and length of a message
_KNOWN_ENTRIES: Final = 3  # fields of the start message
_RETRY_COUNT: Final = 7
_MAX_SIZE: Final = 1 << 20  # the message contains the state of a virtual object

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf


class EngineRetries:
    """Reads the retry count and the journal's length of one attempt.

    Args:
        receive: Receives the messages of the request.
    """

    def __init__(self, receive: Receive) -> None:
        self.count = 0
        """Earlier attempts since the last journal entry; 0 until the start message has arrived."""
        self.entries = 0
        """Journal entries at the start of the attempt, with the input; 0 if unknown."""
        self.execution: str | None = None
        """The execution that `executions.identify` found."""
        self._receive = receive
        self._head: bytearray | None = bytearray()

    async def __call__(self) -> Message:
        message = await self._receive()
        head = self._head
        if head is not None:
            head.extend(message.get("body", b""))
            self._read(head)
        return message

    def _read(self, head: bytearray) -> None:
        if len(head) < _HEADER:
            return
        end = _HEADER + int.from_bytes(head[4:_HEADER], "big")
        if len(head) >= end:
            start = bytes(head[_HEADER:end])
            self.count, self.entries = retry_count(start), known_entries(start)
        elif end < _MAX_SIZE:
            return
        self._head = None


current: ContextVar[EngineRetries | None] = ContextVar("perdure_engine_retries", default=None)


def retry_count(start: bytes) -> int:
    """Return the retry count of a start message; 0 if it has none or cannot be read."""
    return _number(start, _RETRY_COUNT)


def known_entries(start: bytes) -> int:
    """Return the number of journal entries of a start message; 0 if it has none or cannot be read."""
    return _number(start, _KNOWN_ENTRIES)


def _number(start: bytes, field: int) -> int:
    position = 0
    try:
        while position < len(start):
            key, position = _varint(start, position)
            kind = key & 7
            if kind == _VARINT:
                value, position = _varint(start, position)
                if key >> 3 == field:
                    return value
            elif kind == _BYTES:
                length, position = _varint(start, position)
                position += length
            else:
                position += {_FIXED64: 8, _FIXED32: 4}[kind]
    except LookupError:
        return 0
    return 0


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
