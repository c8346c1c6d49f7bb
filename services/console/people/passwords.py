"""Passwords: kept as argon2id hashes, checked in a thread, and in the same time whether the name is known or not."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from services.console.people.fair_slots import FairSlots
from services.console.problems import invalid

SHORTEST = 12
LONGEST = 200


@dataclass(frozen=True)
class Source:
    """Where a request to hash a password comes from; see `FairSlots`.

    Args:
        name: What tells it from others.
        known: Whether it is somebody who has signed in before.
    """

    name: str
    known: bool = False


class Passwords:
    """Hashes and checks passwords.

    Args:
        hasher: With which costs; argon2id as RFC 9106 recommends for little memory (64 MiB) by default.
        at_once: How many are hashed at a time, since each takes that memory.
    """

    def __init__(self, hasher: PasswordHasher | None = None, *, at_once: int = 2) -> None:
        self._hasher = hasher or PasswordHasher()
        self._slots = FairSlots(at_once)
        self._nobodys: str | None = None

    async def hash(self, password: str, source: Source) -> str:
        """Return the hash of a new password.

        Args:
            password: The password.
            source: Who asks for it.

        Raises:
            ConsoleError: It is too short or too long, or too many are waiting.
        """
        check_strength(password)
        async with self._slots.slot(source.name, known=source.known):
            return await asyncio.to_thread(self._hasher.hash, password)

    async def fits(self, known: str | None, password: str, source: Source) -> bool:
        """Tell if a password is the one of a hash.

        Args:
            known: The hash; None for a name that nobody has, which takes as long and never fits.
            password: The password.
            source: Who asks.

        Raises:
            ConsoleError: Too many are waiting.
        """
        async with self._slots.slot(source.name, known=source.known):
            if self._nobodys is None:
                self._nobodys = await asyncio.to_thread(self._hasher.hash, secrets.token_urlsafe())
            fits = await asyncio.to_thread(self._verify, known or self._nobodys, password[: LONGEST + 1])
        return fits and known is not None

    def is_outdated(self, known: str) -> bool:
        """Tell if a hash was made with other costs than today's.

        Args:
            known: The hash.
        """
        return self._hasher.check_needs_rehash(known)

    def _verify(self, known: str, password: str) -> bool:
        try:
            return self._hasher.verify(known, password)
        except (VerifyMismatchError, VerificationError, InvalidHashError):
            return False


def check_strength(password: str) -> None:
    """Refuse a password that is too short or too long; length is what counts (NIST SP 800-63B).

    Args:
        password: The password.

    Raises:
        ConsoleError: It doesn't fit.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise invalid(f"a password has {SHORTEST} to {LONGEST} characters; this one has {len(password)}")
    if len(set(password)) < 4:
        raise invalid("a password needs at least four different characters")
