"""Encryption at rest: what enters the engine's journal is sealed with PyNaCl's SecretBox (XSalsa20 and Poly1305).

Sealed are input, output, results of runs, state, promises, awakeables, and the parameters and responses of calls. Not
sealed are keys, names, headers, and the messages of failures: put nothing secret there. The engine can't read payloads
any more, so that its user interface shows bytes, and a plain request at the ingress is refused: who calls has to seal,
too (see `perdure.ingress.IngressClient`).

A sealed value is ``pd1``, the key's id (8 bytes), a nonce (24) and the box. Keys rotate by the file's order: the first
one seals, all of them open. Add the new key as the second everywhere first, then make it the first; an old key can go
when nothing that it sealed is left (the longest retention, and as long as any state lives).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, Self

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nacl.utils import random
from restate import JournalValueCodec

from perdure.errors import ConfigurationError, UnreadableValue
from perdure.observability.logging import get_logger
from perdure.security.encodings import base64url_decode, base64url_encode
from perdure.security.keys import read_private_file, write_private_file

__all__ = ["ENCRYPTION_KEYS_FILE", "SecretBoxCodec", "codec_from_environment", "new_encryption_key"]

ENCRYPTION_KEYS_FILE: Final = "PERDURE_SECURITY_ENCRYPTION_KEYS_FILE"
"""The one setting that turns encryption on, in services and in whoever calls them."""

_MAGIC: Final = b"pd1"
_ID_BYTES: Final = 8
_HEAD: Final = len(_MAGIC) + _ID_BYTES

log = get_logger(__name__)


class SecretBoxCodec(JournalValueCodec):
    """Seals and opens what the journal keeps. It shows the ids of its keys only, and can't be pickled.

    Args:
        keys: Secret keys of 32 bytes. The first seals, each one opens.
        allow_plain: Also take values that aren't sealed: for the time in which a platform turns encryption on. Who can
            write to the ingress can then write unsealed values, too.

    Raises:
        ConfigurationError: There is no key, one is twice there, or one hasn't 32 bytes.
    """

    def __init__(self, keys: Sequence[bytes], *, allow_plain: bool = False) -> None:
        if not keys:
            raise ConfigurationError("encryption needs at least one key")
        if any(len(key) != SecretBox.KEY_SIZE for key in keys):
            raise ConfigurationError(f"an encryption key has {SecretBox.KEY_SIZE} bytes")
        self._boxes = {_id(key): SecretBox(bytes(key)) for key in keys}
        if len(self._boxes) != len(keys):
            raise ConfigurationError("an encryption key is there twice")
        first = _id(keys[0])
        self._head = _MAGIC + first
        self._box = self._boxes[first]
        self._allow_plain = allow_plain

    @classmethod
    def load(cls, path: Path, *, allow_plain: bool = False, check_mode: bool = True) -> Self:
        """Read the keys from a file: one on each line, 32 bytes in base64url; empty lines and ``#`` lines don't count.

        Args:
            path: The file.
            allow_plain: See the class.
            check_mode: Refuse a file that others than its owner may read.

        Raises:
            ConfigurationError: There is none, others may read it, or a line is no key; the message names the line.
        """
        keys = []
        for number, line in enumerate(read_private_file(path, check_mode=check_mode).splitlines(), 1):
            text = line.strip()
            if not text or text.startswith(b"#"):
                continue
            try:
                keys.append(base64url_decode(text.decode("ascii")))
            except ValueError:
                raise ConfigurationError(f"{path}, line {number}: this is no key in base64url") from None
        try:
            return cls(keys, allow_plain=allow_plain)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The keys' ids, the one that seals first. They tell nothing about the keys."""
        return tuple(each.hex() for each in self._boxes)

    def encode(self, buf: bytes) -> bytes:
        """Seal a value. The empty one stays empty: it says that there is none.

        Args:
            buf: The value.
        """
        if not buf:
            return b""
        return self._head + bytes(self._box.encrypt(bytes(buf)))

    async def decode(self, buf: bytes) -> bytes:
        """Open a value.

        Args:
            buf: What `encode` gave, with any of the keys; or nothing.

        Raises:
            UnreadableValue: It is something else. The engine retries what needs the value, except for a handler's
                input, which the SDK refuses with a terminal 400: the reason is in the log.
        """
        try:
            return self.open(buf)
        except UnreadableValue as error:
            log.warning("a value of the journal can't be read", reason=str(error))
            raise

    def open(self, buf: bytes) -> bytes:
        """Open a value, as `decode` does."""
        if not buf:
            return b""
        value = bytes(buf)
        if not value.startswith(_MAGIC):
            if self._allow_plain:
                return value
            raise UnreadableValue(
                "this value is not encrypted, and encryption is on: send it through a client that has the keys"
            )
        key_id = value[len(_MAGIC) : _HEAD]
        box = self._boxes.get(key_id)
        if box is None:
            raise UnreadableValue(
                f"this value is encrypted with the key {key_id.hex()}, which isn't known here; known are "
                f"{', '.join(self.key_ids)}: keep old keys in the file as long as what they sealed"
            )
        try:
            return bytes(box.decrypt(value[_HEAD:]))
        except (CryptoError, ValueError):
            raise UnreadableValue(f"this value is damaged: the key {key_id.hex()} doesn't open it") from None

    def __repr__(self) -> str:
        return f"SecretBoxCodec({', '.join(self.key_ids)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("encryption keys are not to be pickled: they would end up where they can be read")


def codec_from_environment(environment: Mapping[str, str] | None = None) -> SecretBoxCodec | None:
    """Return what a client of encrypted services seals and opens with.

    ``PERDURE_SECURITY_ENCRYPTION_KEYS_FILE`` names its keys. A process that serves has it from `SecurityConfig.codec`.

    Args:
        environment: Where the variable is; this process's environment by default.

    Returns:
        The codec; None when the variable isn't set, and the journal is in clear.

    Raises:
        ConfigurationError: The keys can't be read, or others than their owner may read them.
    """
    file = (os.environ if environment is None else environment).get(ENCRYPTION_KEYS_FILE)
    return SecretBoxCodec.load(Path(file)) if file else None


def new_encryption_key(path: Path) -> SecretBoxCodec:
    """Make a new key in a new file that its owner alone may read.

    Args:
        path: The file. One that exists is never overwritten.

    Raises:
        ConfigurationError: It exists, or can't be written.
    """
    key = random(SecretBox.KEY_SIZE)
    write_private_file(path, base64url_encode(key).encode() + b"\n")
    return SecretBoxCodec([key])


def _id(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=_ID_BYTES, person=b"perdure key id").digest()
