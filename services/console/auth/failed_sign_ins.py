"""The keys under which failed sign-ins are counted."""

from __future__ import annotations

import ipaddress
from typing import Final

from sqlalchemy import delete, or_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.console.tables import FailedSignInRow

_NETWORK_BITS: Final = 64


def name_key(user: str) -> str:
    """Return the key of a user name, over all addresses."""
    return f"name {user}"


def name_and_address_key(user: str, address: str) -> str:
    """Return the key of a user name at one address."""
    # A canonical name has no line break, so the separator is unambiguous.
    return f"{name_key(user)}\n{network_of(address)}"


def address_key(address: str) -> str:
    """Return the key of an address, over all user names."""
    return f"address {network_of(address)}"


def device_key(device: str) -> str:
    """Return the key of a known device."""
    return f"device {device}"


def session_key(session: str) -> str:
    """Return the key of a session, for wrong passwords in a password change."""
    return f"session {session}"


async def clear(connection: AsyncConnection, user: str) -> None:
    """Delete the failures of a user name; the counts of addresses stay."""
    at_addresses = FailedSignInRow.key.startswith(name_and_address_key(user, ""), autoescape=True)
    await connection.execute(delete(FailedSignInRow).where(or_(FailedSignInRow.key == name_key(user), at_addresses)))


def network_of(address: str) -> str:
    """Return an IPv4 address, or the /64 of an IPv6 address, since one client usually holds a whole /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a proxy may use obfuscated names
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _NETWORK_BITS), strict=False))
