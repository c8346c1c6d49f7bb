"""The engine's retry count in the first message of an attempt."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.engine_retries import EngineRetries, known_entries, retry_count


def varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


starts = st.builds(
    lambda name, known, key, count: (field(1, name) + field(3, known) + field(6, key) + field(7, count), known, count),
    st.binary(max_size=300),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=50),
    st.integers(0, 2**32 - 1),
)


@given(start=starts, cuts=st.lists(st.integers(1, 40), max_size=20), rest=st.binary(max_size=30))
async def test_read_count_from_any_chunks(start, cuts, rest):
    message, known, count = start
    body = b"\0\0\0\0" + len(message).to_bytes(4, "big") + message + rest
    chunks = []
    for size in cuts:
        chunks.append(body[:size])
        body = body[size:]
    chunks.append(body)
    received = iter(chunks)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(received), "more_body": True}

    retries = EngineRetries(receive)
    assert [(await retries())["body"] for _ in chunks] == chunks
    assert (retries.entries, retries.count) == (known, count)


@given(data=st.binary(max_size=100))
def test_unreadable_message_has_a_count(data):
    assert retry_count(data) >= 0
    assert known_entries(data) >= 0
