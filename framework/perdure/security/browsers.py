"""Protection of unauthenticated ports against web pages: the ingress, the admin API and the ports of services.

Browsers send requests of any page, also to the local machine. Such a request has an ``Origin`` or ``Sec-Fetch-Site``
header, which a page cannot omit or change; or, after DNS rebinding, a ``Host`` that the attacker owns. Programs such as
curl send neither header, and the host that they were given.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Literal

from perdure._runtime import sdk
from perdure.errors import ConfigurationError, Forbidden

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")
"""Names of the local machine, which DNS cannot redirect."""

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)\.?(?::[0-9]{1,5})?", re.ASCII)
_READ_PATHS: Final = re.compile(rb"/restate/(?:health|invocation|workflow|attach|output|lookup)(?:/|\Z)")
_OWN_PAGES: Final = re.compile(rb"/ui(?:/|\Z)")

_PRIVATE_DOMAINS: Final = frozenset({"internal", "local", "localhost", "test"})

Headers = Collection[tuple[bytes, bytes]]
"""ASGI headers: one entry per line."""


@dataclass(frozen=True)
class Refusal:
    """Response to a refused request.

    Args:
        status: The HTTP status.
        code: The machine-readable reason.
        message: The reason and the action to take, without content of the request.
    """

    status: int
    code: Literal["ambiguous_request", "foreign_host", "browser_origin", "method_not_allowed", "not_an_awakeable"]
    message: str


@dataclass(frozen=True)
class BrowserRules:
    """Rules that refuse requests of web pages.

    Args:
        hosts: The accepted host names, without a port.
        origins: The origins of pages that may call.
        has_pages: Whether the server serves own pages under ``/ui``, which may call it.

    Raises:
        ConfigurationError: A host name is invalid.
    """

    hosts: frozenset[str] = frozenset(LOOPBACK_HOSTS)
    origins: frozenset[str] = frozenset()
    has_pages: bool = False

    def __post_init__(self) -> None:
        for host in self.hosts:
            if host_name(host.encode()) != host:
                raise ConfigurationError(
                    f"'{host}' is not a host name without a port, such as api.example.com or [::1]"
                )

    def refusal(self, method: str, path: bytes, headers: Headers) -> Refusal | None:
        """Return why a request is refused, or None.

        Args:
            method: The HTTP method.
            path: The path as sent, without the query.
            headers: The headers.

        """
        fields = list(headers)
        hosts = header_values(fields, b"host")
        lengths = header_values(fields, b"content-length")
        if len(hosts) != 1 or len(lengths) > 1 or (lengths and header_values(fields, b"transfer-encoding")):
            return Refusal(400, "ambiguous_request", "send exactly one Host and at most one body length")
        if host_name(hosts[0]) not in self.hosts:
            return Refusal(
                403,
                "foreign_host",
                "this host name is not served here: use 127.0.0.1 or localhost, or add the name to "
                "PERDURE_PROXY_ALLOWED_HOSTS",
            )
        origins = [value.decode("latin-1").lower() for value in header_values(fields, b"origin")]
        if len(origins) == 1 and (origins[0] in self.origins or self._is_own_origin(origins[0], hosts[0])):
            return None
        if origins or (is_sent_by_page(fields) and not self._is_own_page(method, path, fields)):
            return Refusal(
                403,
                "browser_origin",
                "web pages may not call this address: call it from a program, or add the page's origin to "
                "PERDURE_SECURITY_ALLOWED_ORIGINS",
            )
        if (
            not self.has_pages
            and method not in ("POST", "OPTIONS")
            and not (method == "GET" and _READ_PATHS.match(path))
        ):
            # Browsers without Sec-Fetch-Site send GET requests of pages without any sign of the page.
            return Refusal(405, "method_not_allowed", "call handlers with the method POST")
        return None

    def _is_own_origin(self, origin: str, host: bytes) -> bool:
        own = host.decode("latin-1").lower()
        return self.has_pages and origin in (f"http://{own}", f"https://{own}")

    def _is_own_page(self, method: str, path: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
        """Return whether one of the server's own pages sends the request, or a person follows a link to one."""
        if not self.has_pages or method != "GET":
            return False
        if header_values(headers, b"sec-fetch-site") == [b"same-origin"]:
            return True
        fetched = [header_values(headers, name) for name in (b"sec-fetch-mode", b"sec-fetch-dest")]
        return fetched == [[b"navigate"], [b"document"]] and _OWN_PAGES.match(path) is not None


def normalize_host_names(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return host names, without ports, in lower case.

    Raises:
        ValueError: A host name is invalid.
    """
    lowered = tuple(host.lower() for host in hosts)
    try:
        BrowserRules(hosts=frozenset(lowered))
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return lowered


def header_values(headers: Headers, name: bytes) -> list[bytes]:
    """Return all values of a header, whose name is given in lower case."""
    return [value for field, value in headers if field.lower() == name]


def host_name(host: bytes) -> str | None:
    """Return the name of a ``Host`` header in lower case without the port, or None for a malformed header."""
    match = _HOST.fullmatch(host.decode("latin-1").lower())
    return match.group(1) if match else None


def is_rebindable(host: str) -> bool:
    """Return whether an attacker could point a host name, as from `host_name`, at this machine.

    That requires a name in the public DNS: not an address, a name without a dot, or one in a private domain.
    """
    if host.rpartition(".")[2] in _PRIVATE_DOMAINS or host.endswith(".home.arpa"):
        return False
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return "." in host
    return False


def is_sent_by_page(headers: Headers) -> bool:
    """Return whether a browser marks a request as sent by a page instead of a typed address."""
    return any(value.strip().lower() != b"none" for value in header_values(headers, b"sec-fetch-site"))


def reject_web_pages(
    function: Callable[..., Awaitable[Any]], origins: Collection[str]
) -> Callable[..., Awaitable[Any]]:
    """Wrap an SDK handler so that calls of web pages with other origins fail with a terminal 403.

    The ingress serves every page and passes its ``Origin`` to the handler. This check holds without a proxy in front of
    the ingress.
    """

    async def checked(ctx: Any, *request: Any) -> Any:
        # Later attempts passed this check before, perhaps with other settings.
        origin = sdk.initial_header(ctx, "origin")
        if origin is not None and origin.lower() not in origins and not sdk.is_replaying(ctx):
            raise Forbidden(
                "a web page may not call this handler: call it from a program, or add the page's origin to "
                "PERDURE_SECURITY_ALLOWED_ORIGINS",
                metadata={"code": "browser_origin"},
            )
        return await function(ctx, *request)

    return checked
