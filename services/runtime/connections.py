"""HTTP clients for the engine and services on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from perdure import IngressClient
from perdure._runtime.places import ValueCodec
from perdure._runtime.tls import tls_context
from perdure.engine.admin import AdminClient


def local_http() -> httpx.AsyncClient:
    """Return a client without a timeout for answers, which ignores the proxy settings of the environment."""
    return httpx.AsyncClient(
        trust_env=False,
        verify=tls_context(),
        timeout=httpx.Timeout(None, connect=5.0),
        limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
    )


@asynccontextmanager
async def ingress_client(url: str, codec: ValueCodec | None = None) -> AsyncIterator[IngressClient]:
    """Open a client for an ingress of this machine.

    Args:
        url: Address of the ingress.
        codec: Codec of an encrypted journal; None for clear text.
    """
    async with local_http() as http:
        yield IngressClient(url, http=http, codec=codec)


@asynccontextmanager
async def admin_client(url: str) -> AsyncIterator[AdminClient]:
    """Open a client for an admin API of this machine.

    Args:
        url: Address of the admin API.
    """
    async with local_http() as http:
        http.timeout = httpx.Timeout(30.0)
        yield AdminClient(url, http=http)


async def answers(http: httpx.AsyncClient, url: str) -> bool:
    """Return whether a GET request succeeds within 2 seconds."""
    try:
        return (await http.get(url, timeout=2.0)).is_success
    except httpx.TransportError:
        return False
