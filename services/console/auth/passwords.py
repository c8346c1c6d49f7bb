"""Password hashing with argon2id, in threads, in constant time for known and unknown user names."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from services.console.auth.fair_slots import FairSlots
from services.console.problems import invalid

MIN_LENGTH = 12
MAX_LENGTH = 200


@dataclass(frozen=True)
class Source:
    """The source of a hashing request, see `FairSlots`."""

    name: str
    known: bool = False


class Passwords:
    """Hashes and verifies passwords.

    Args:
        hasher: The hasher; by default argon2id with RFC 9106's parameters for little memory (64 MiB).
        concurrency: The number of concurrent hashes, each of which takes that memory.
    """

    def __init__(self, hasher: PasswordHasher | None = None, *, concurrency: int = 2) -> None:
        self._hasher = hasher or PasswordHasher()
        self._slots = FairSlots(concurrency)
        self._dummy_hash: str | None = None

    async def hash(self, password: str, source: Source) -> str:
        """Return the hash of a new password.

        Raises:
            ConsoleError: The password is invalid (400), or too many requests are waiting.
        """
        check_password(password)
        async with self._slots.slot(source.name, known=source.known):
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify(self, known: str | None, password: str, source: Source) -> bool:
        """Verify a password against a hash. None, for an unknown user, takes as long and is never verified.

        Raises:
            ConsoleError: Too many requests are waiting.
        """
        async with self._slots.slot(source.name, known=source.known):
            if self._dummy_hash is None:
                self._dummy_hash = await asyncio.to_thread(self._hasher.hash, secrets.token_urlsafe())
            is_correct = await asyncio.to_thread(self._verify, known or self._dummy_hash, password[: MAX_LENGTH + 1])
        return is_correct and known is not None

    def _verify(self, known: str, password: str) -> bool:
        try:
            return self._hasher.verify(known, password)
        except (VerifyMismatchError, VerificationError, InvalidHashError):
            return False


def check_password(password: str) -> None:
    """Check the length of a new password, which decides its strength (NIST SP 800-63B).

    Raises:
        ConsoleError: The password is too short, too long or too uniform.
    """
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise invalid(f"a password needs {MIN_LENGTH} to {MAX_LENGTH} characters; this one has {len(password)}")
    if len(set(password)) < 4:
        raise invalid("a password needs at least four different characters")
