"""Malformed HTTP requests."""

from __future__ import annotations

import asyncio

from services.runtime.topology import HOST

_WITHIN = 15.0


async def raw_answer(port: int, request: bytes) -> str:
    """Send bytes to a local port and return the status of the response.

    Args:
        port: The port.
        request: The bytes.

    Returns:
        The status; ``closed`` if the connection closed without a response, ``silence`` after the time limit.
    """
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(request)
        async with asyncio.timeout(_WITHIN):
            line = await reader.readline()
    except TimeoutError:
        return "silence"
    except ConnectionError:
        return "closed"
    finally:
        writer.close()
    words = line.decode("latin-1").split()
    return words[1] if len(words) > 1 else "closed"
