"""HTTP clients for this machine's own engine and services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from perdure import IngressClient
from perdure._runtime.places import ValueCodec
from perdure.engine.admin import AdminClient


def local_http() -> httpx.AsyncClient:
    """Return a client that goes straight to this machine, whatever proxy the environment names, and waits for ever."""
    return httpx.AsyncClient(
        trust_env=False,
        timeout=httpx.Timeout(None, connect=5.0),
        limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
    )


@asynccontextmanager
async def ingress_client(url: str, codec: ValueCodec | None = None) -> AsyncIterator[IngressClient]:
    """Open a client for an ingress of this machine.

    Args:
        url: The ingress.
        codec: What the platform's journal is encrypted with; None when it is in clear.
    """
    async with local_http() as http:
        yield IngressClient(url, http=http, codec=codec)


@asynccontextmanager
async def admin_client(url: str) -> AsyncIterator[AdminClient]:
    """Open a client for an admin API of this machine.

    Args:
        url: The admin API.
    """
    async with local_http() as http:
        http.timeout = httpx.Timeout(30.0)
        yield AdminClient(url, http=http)


async def answers(http: httpx.AsyncClient, url: str) -> bool:
    """Tell if an address answers with success within 2 seconds.

    Args:
        http: The client to ask with.
        url: What to get.
    """
    try:
        return (await http.get(url, timeout=2.0)).is_success
    except httpx.TransportError:
        return False
