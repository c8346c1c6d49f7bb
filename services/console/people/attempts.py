"""Failed sign-ins: of whom and from where they are counted, and how a name's are forgotten."""

from __future__ import annotations

import ipaddress
from typing import Final

from sqlalchemy import delete, or_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.console.people.tables import AttemptRow

_NETWORK_BITS: Final = 64


def of_name(person: str) -> str:
    """Return what a name's failures are counted under, wherever they come from.

    Args:
        person: The canonical name.
    """
    return f"name {person}"


def of_name_from(person: str, address: str) -> str:
    """Return what a name's failures from one address are counted under.

    Args:
        person: The canonical name.
        address: The address.
    """
    # No canonical name has a line break, so where the name ends is beyond doubt.
    return f"{of_name(person)}\n{place(address)}"


def of_address(address: str) -> str:
    """Return what an address's failures are counted under, whatever the name.

    Args:
        address: The address.
    """
    return f"address {place(address)}"


def of_device(device: str) -> str:
    """Return the key under which failures of a known device are counted.

    Args:
        device: The device's id.
    """
    return f"device {device}"


def of_session(session: str) -> str:
    """Return the key under which wrong old passwords of a session are counted.

    Args:
        session: The session's id.
    """
    return f"session {session}"


async def forget(connection: AsyncConnection, person: str) -> None:
    """Forget a name's failures, wherever they came from. What the addresses did stays counted.

    Args:
        connection: An open transaction.
        person: The canonical name.
    """
    everywhere = AttemptRow.whose.startswith(of_name_from(person, ""), autoescape=True)
    await connection.execute(delete(AttemptRow).where(or_(AttemptRow.whose == of_name(person), everywhere)))


def place(address: str) -> str:
    """Return an address as it is counted: of IPv6 its network, for who has one address there has all of them.

    Args:
        address: The address.
    """
    try:
        read = ipaddress.ip_address(address)
    except ValueError:  # a proxy may name its clients as it likes
        return address
    if isinstance(read, ipaddress.IPv4Address):
        return address
    if read.ipv4_mapped is not None:
        return str(read.ipv4_mapped)
    return str(ipaddress.ip_network((int(read), _NETWORK_BITS), strict=False))
