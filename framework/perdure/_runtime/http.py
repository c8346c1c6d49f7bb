"""HTTP clients of Perdure. All are made here, so that proxies and TLS settings apply in one way.

Clients of this machine ignore the proxy variables of the environment (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``,
``NO_PROXY``); a proxy could not reach it. Other clients honour them.
"""

from __future__ import annotations

import ssl
from functools import cache
from ipaddress import ip_address
from typing import Any, Final
from urllib.request import getproxies

import httpx

from perdure.errors import ConfigurationError

_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")


def http_client(*urls: str, **options: Any) -> httpx.AsyncClient:
    """Return a client for requests to these URLs.

    Args:
        urls: The URLs; requests to others are possible.
        options: Arguments of `httpx.AsyncClient`.

    Raises:
        ConfigurationError: A proxy variable cannot be used, and one of the URLs is not local.
    """
    if urls and all(map(is_local, urls)):
        return httpx.AsyncClient(verify=tls_context(), trust_env=False, **options)
    direct = dict.fromkeys(f"all://{host}" for host in (*_LOCAL_HOSTS, *_hosts(urls)))
    try:
        _check_ports()
        return httpx.AsyncClient(verify=tls_context(), mounts=direct, **options)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise ConfigurationError(
            f"the proxy settings cannot be used ({str(error).partition('. ')[0]}): correct HTTP_PROXY, HTTPS_PROXY, "
            "ALL_PROXY and NO_PROXY. NO_PROXY takes host names, domains and single addresses, separated by commas"
        ) from error


def _check_ports() -> None:
    """Refuse proxies with an impossible port, which httpx accepts until the first request fails unexpectedly."""
    for kind in ("http", "https", "all"):
        proxy = getproxies().get(kind, "")
        if proxy and (httpx.URL(proxy).port or 0) > 65_535:
            raise ValueError(f"the proxy for {kind} has an invalid port")


def is_local(url: str) -> bool:
    """Return whether a URL has a loopback address of this machine."""
    host = _host(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _host(url: str) -> str:
    try:
        return httpx.URL(url).host.rstrip(".")
    except httpx.InvalidURL:  # reported by the request
        return ""


def _hosts(urls: tuple[str, ...]) -> list[str]:
    return [f"[{host}]" if ":" in (host := _host(url)) else host for url in urls if is_local(url)]


@cache
def tls_context() -> ssl.SSLContext:
    """Return the TLS settings of this process. Reading the certificates takes 30 ms, so clients share them."""
    return httpx.create_ssl_context()
