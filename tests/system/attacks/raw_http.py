"""Requests that no HTTP client would send."""

from __future__ import annotations

import asyncio

from services.runtime.topology import HOST

_WITHIN = 15.0


async def raw_answer(port: int, request: bytes) -> str:
    """Send bytes to a port of this machine, and return the status and code of the answer.

    Args:
        port: The port.
        request: The bytes.

    Returns:
        The status; ``closed`` when the connection was closed without an answer, ``silence`` when nothing came in time.
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
