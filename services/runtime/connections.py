"""HTTP clients for the engine and services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from perdure import IngressClient
from perdure._runtime.http import http_client
from perdure._runtime.places import ValueCodec
from perdure.engine.admin import AdminClient


def open_http(*urls: str) -> httpx.AsyncClient:
    """Return a client without a timeout for answers.

    Args:
        urls: Addresses that it is for. Proxies of the environment apply to those of other machines.
    """
    return http_client(
        *urls,
        timeout=httpx.Timeout(None, connect=5.0),
        limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
    )


def local_http() -> httpx.AsyncClient:
    """Return a client for this machine without a timeout for answers."""
    return open_http("http://127.0.0.1")


@asynccontextmanager
async def ingress_client(
    url: str, codec: ValueCodec | None = None, *, max_attempts: int = 5
) -> AsyncIterator[IngressClient]:
    """Open a client for an ingress.

    Args:
        url: Address of the ingress.
        codec: Codec of an encrypted journal; None for clear text.
        max_attempts: Maximum number of attempts of a request that is safe to repeat.
    """
    async with open_http(url) as http:
        yield IngressClient(url, http=http, codec=codec, max_attempts=max_attempts)


@asynccontextmanager
async def admin_client(url: str) -> AsyncIterator[AdminClient]:
    """Open a client for an admin API.

    Args:
        url: Address of the admin API.
    """
    async with open_http(url) as http:
        http.timeout = httpx.Timeout(30.0)
        yield AdminClient(url, http=http)


async def answers(http: httpx.AsyncClient, url: str) -> bool:
    """Return whether a GET request succeeds within 2 seconds."""
    return await problem_at(http, url) is None


async def problem_at(http: httpx.AsyncClient, url: str) -> str | None:
    """Return why a GET request does not succeed within 2 seconds, for example "does not answer"; None if it does."""
    try:
        response = await http.get(url, timeout=2.0)
    except httpx.ConnectError as error:
        return f"does not answer: {error}"
    except httpx.TransportError:
        return "does not answer"
    return None if response.is_success else f"answers {response.status_code}: {' '.join(response.text[:300].split())}"
