"""Rules that keep web pages away from what asks for no password: the ingress, the admin API, a service's port.

A browser sends requests for every page that it shows, to this machine too. Two things tell such a request apart. It
carries ``Origin`` or ``Sec-Fetch-Site``, which no page can leave out or change. Or, after DNS rebinding, its ``Host``
is a name of the attacker's. A program such as curl or an SDK sends neither of the first, and names the host that it was
given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal

from perdure.errors import ConfigurationError

__all__ = [
    "LOOPBACK_HOSTS",
    "BrowserRules",
    "Refusal",
    "headers_named",
    "host_name",
    "is_rebindable",
    "is_sent_by_page",
    "names_of",
]

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine that nobody else can point elsewhere."""

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)\.?(?::[0-9]{1,5})?", re.ASCII)
_READS: Final = re.compile(rb"/restate/(?:health|invocation|workflow|attach|output|lookup)(?:/|\Z)")
_OWN_PAGES: Final = re.compile(rb"/ui(?:/|\Z)")

_PRIVATE_DOMAINS: Final = frozenset({"internal", "local", "localhost", "test"})

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused.

    Args:
        status: The HTTP status.
        code: The machine-readable reason.
        message: What was refused, and what to do. It holds nothing that the caller sent.
    """

    status: int
    code: Literal["ambiguous_request", "foreign_host", "browser_origin", "method_not_allowed", "not_an_awakeable"]
    message: str


@dataclass(frozen=True)
class BrowserRules:
    """Decides if a request comes from a web page that may not call.

    Args:
        hosts: Names in ``Host`` that are taken, without a port.
        origins: Origins of pages that may call.
        has_pages: The server shows pages of its own under ``/ui``, which may call it.

    Raises:
        ConfigurationError: A host is no host name.
    """

    hosts: frozenset[str] = frozenset(LOOPBACK_HOSTS)
    origins: frozenset[str] = frozenset()
    has_pages: bool = False

    def __post_init__(self) -> None:
        for host in self.hosts:
            if host_name(host.encode()) != host:
                raise ConfigurationError(f"'{host}' is no host name without a port, such as api.example.com or [::1]")

    def refusal(self, method: str, path: bytes, headers: Headers) -> Refusal | None:
        """Return why a request is refused, None when it is taken.

        Args:
            method: The HTTP method.
            path: The path as it was sent, without the query.
            headers: The header fields, names in lower case.
        """
        fields = list(headers)
        hosts = headers_named(fields, b"host")
        lengths = headers_named(fields, b"content-length")
        if len(hosts) != 1 or len(lengths) > 1 or (lengths and headers_named(fields, b"transfer-encoding")):
            return Refusal(400, "ambiguous_request", "send one Host, and one length of the body at most")
        if host_name(hosts[0]) not in self.hosts:
            return Refusal(
                403,
                "foreign_host",
                "this host name is not served here: use 127.0.0.1 or localhost, or add the name to "
                "PERDURE_PROXY_ALLOWED_HOSTS",
            )
        origins = [each.decode("latin-1").lower() for each in headers_named(fields, b"origin")]
        if len(origins) == 1 and (origins[0] in self.origins or self._is_own(origins[0], hosts[0])):
            return None
        if origins or (is_sent_by_page(fields) and not self._is_own_request(method, path, fields)):
            return Refusal(
                403,
                "browser_origin",
                "web pages may not call this address: call it from a program, or add the page's origin to "
                "PERDURE_SECURITY_ALLOWED_ORIGINS",
            )
        if not self.has_pages and method not in ("POST", "OPTIONS") and not (method == "GET" and _READS.match(path)):
            # A page can make a browser send a GET without a trace of the page, where it knows no Sec-Fetch-Site.
            return Refusal(405, "method_not_allowed", "a handler is called with the method POST")
        return None

    def _is_own(self, origin: str, host: bytes) -> bool:
        own = host.decode("latin-1").lower()
        return self.has_pages and origin in (f"http://{own}", f"https://{own}")

    def _is_own_request(self, method: str, path: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
        """Tell if a page of the server's own asks, or a person follows a link to one."""
        if not self.has_pages or method != "GET":
            return False
        if headers_named(headers, b"sec-fetch-site") == [b"same-origin"]:
            return True
        opened = [headers_named(headers, name) for name in (b"sec-fetch-mode", b"sec-fetch-dest")]
        return opened == [[b"navigate"], [b"document"]] and _OWN_PAGES.match(path) is not None


def names_of(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return host names of a setting in lower case.

    Args:
        hosts: Names without a port.

    Raises:
        ValueError: One is no host name.
    """
    lowered = tuple(host.lower() for host in hosts)
    try:
        BrowserRules(hosts=frozenset(lowered))
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return lowered


def headers_named(headers: Headers, name: bytes) -> list[bytes]:
    """Return all values of a header.

    Args:
        headers: The header fields, names in lower case.
        name: The name, in lower case.
    """
    return [value for each, value in headers if each == name]


def host_name(host: bytes) -> str | None:
    """Return the name in a ``Host`` header in lower case, without the port; None when the header is malformed.

    Args:
        host: The header's value.
    """
    match = _HOST.fullmatch(host.decode("latin-1").lower())
    return match.group(1) if match else None


def is_rebindable(host: str) -> bool:
    """Tell if an attacker could have pointed a host name at this machine.

    That takes a name in the public DNS: no address, no name without a dot, none under a domain that is reserved for
    private networks.

    Args:
        host: See `host_name`.
    """
    if host.rpartition(".")[2] in _PRIVATE_DOMAINS or host.endswith(".home.arpa"):
        return False
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return "." in host
    return False


def is_sent_by_page(headers: Headers) -> bool:
    """Tell if a browser says that a page has caused a request, and not a person who typed its address.

    Args:
        headers: The header fields, names in lower case.
    """
    return any(value.strip().lower() != b"none" for value in headers_named(headers, b"sec-fetch-site"))
