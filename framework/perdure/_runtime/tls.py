"""TLS settings that all HTTP clients of a process share."""

from __future__ import annotations

import ssl
from functools import cache

import httpx


@cache
def tls_context() -> ssl.SSLContext:
    """Return the TLS settings of this process. Reading the certificates takes 30 ms, so clients share them."""
    return httpx.create_ssl_context()
