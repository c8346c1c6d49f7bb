"""Client addresses behind trusted proxies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from fastapi import Request

from perdure.observability.logging import get_logger
from perdure.security.config import Network
from services.console.settings import ConsoleSettings, ForwardedHeader

log = get_logger(__name__)

_MAX_HOPS: Final = 32

Address = IPv4Address | IPv6Address


def client_address(request: Request, settings: ConsoleSettings) -> str:
    """Return the address of the client that sent a request."""
    peer = request.client.host if request.client else "unknown"
    lines = request.headers.getlist(settings.forwarded_header)
    if lines and not _is_within(_parse(peer), settings.trusted_proxies):
        _warn_once(peer, settings.forwarded_header)
    return trace_back(peer, lines, header=settings.forwarded_header, trusted=settings.trusted_proxies)


def trace_back(peer: str, lines: Sequence[str], *, header: ForwardedHeader, trusted: Sequence[Network]) -> str:
    """Return the nearest address that is not a trusted proxy's.

    Each proxy appends the address of its peer, to the last line or in a new line. The header is therefore read from
    right to left, only as far as trusted proxies have written it. The client may have invented the rest.

    Args:
        peer: The other end of the connection.
        lines: The header's lines, in their order.
        header: The header's name.
        trusted: The networks of trusted proxies.

    Returns:
        The canonical address, without a port. The last proxy's, if that proxy names no valid address.
    """
    hop = _parse(peer)
    if hop is None:
        return peer
    for element in itertools.islice(_elements(lines, header), _MAX_HOPS):
        if not _is_within(hop, trusted):
            break
        before = _parse(element)
        if before is None:  # "unknown", or an obfuscated name
            break
        hop = before
    return str(hop)


def _elements(lines: Sequence[str], header: ForwardedHeader) -> Iterator[str]:
    """Yield the elements of a header from right to left."""
    for element in reversed(",".join(lines).split(",")):
        if not element.strip():
            continue
        yield element if header == "x-forwarded-for" else _for(element)


def _for(element: str) -> str:
    """Return the ``for`` parameter of an element of ``Forwarded`` (RFC 7239); empty for none or several."""
    pairs = [pair.partition("=") for pair in element.split(";")]
    found = [value for name, _, value in pairs if name.strip().lower() == "for"]
    return found[0] if len(found) == 1 else ""


def _parse(text: str) -> Address | None:
    """Parse an address, which may have quotes, brackets and a port; None for anything else."""
    text = text.strip()
    if text.startswith('"') and text.endswith('"'):
        text = text[1:-1]
    if text.startswith("["):
        text, _, port = text[1:].partition("]")
        if port and not _is_port(port):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit()


def _is_within(address: Address | None, networks: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in networks)


_warned: set[str] = set()


def _warn_once(peer: str, header: str) -> None:
    """Warn about an untrusted proxy, whose clients share one limit of failed sign-ins."""
    if not _warned:
        _warned.add(peer)
        log.warning(
            "console.proxy_not_trusted",
            peer=peer,
            header=header,
            hint="if this is your proxy, add its network to PERDURE_CONSOLE_TRUSTED_PROXIES; until then, its clients "
            "share one limit of failed sign-ins",
        )
