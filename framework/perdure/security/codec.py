"""Encryption at rest: values in the engine's journal are sealed with XChaCha20-Poly1305 (libsodium, through PyNaCl).

Inputs, outputs, results of runs, state, promises, awakeables, signals, and the parameters and responses of calls are
sealed. Keys, names, headers and the messages of failures are not: put no secrets there. The engine cannot read
payloads, so its user interface shows bytes. Callers need the keys
(`perdure.engine.ingress.IngressClient`, the gateway).

Each value is bound to its `perdure._runtime.places.Place` on its platform: the place is the associated data of the
AEAD. A sealed value that is copied to another place does not open there.

A sealed value is ``pd2``, the ID of the key (8 bytes), for an output its place, a nonce (24) and the ciphertext with
its tag (16). Nonces are random. With 192 bits they do not repeat, however many values one key seals.

Keys rotate by the order in the file: the first one seals, all of them open. First add the new key as the second line
everywhere, then make it the first. Remove an old key when nothing is left that it sealed (the longest retention, and as
long as any state lives).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, Self

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError
from nacl.secret import Aead
from nacl.utils import random

from perdure._runtime.places import OutputSource, Place, PlaceKind, ValueCodec
from perdure.errors import ConfigurationError, UnreadableValue
from perdure.observability.logging import get_logger
from perdure.security.encodings import base64url_decode, base64url_encode
from perdure.security.keys import read_private_file, write_private_file
from perdure.security.platform import DEFAULT_PLATFORM, platform_from_environment

__all__ = ["ENCRYPTION_KEYS_FILE", "JournalCodec", "codec_from_environment", "new_encryption_key"]

ENCRYPTION_KEYS_FILE: Final = "PERDURE_SECURITY_ENCRYPTION_KEYS_FILE"
"""The one setting that turns encryption on, in services and in their callers."""

_FORMAT: Final = b"pd2"
_UNBOUND_FORMAT: Final = b"pd1"
_ID_BYTES: Final = 8
_HEAD: Final = len(_FORMAT) + _ID_BYTES
_NONCE_BYTES: Final = Aead.NONCE_SIZE
_SHORTEST: Final = _NONCE_BYTES + Aead.MACBYTES
_SHOWN: Final = struct.Struct(">4I")  # the lengths of the fields by which an output names its place

log = get_logger(__name__)


class JournalCodec(ValueCodec):
    """Seals and opens journal values. It shows the IDs of its keys only, and cannot be pickled.

    Args:
        keys: Secret keys of 32 bytes. The first seals, each one opens.
        platform: The platform's ID. Values of another platform do not open, even with the same keys.

    Raises:
        ConfigurationError: There is no key, one is twice there, or one hasn't 32 bytes.
    """

    def __init__(self, keys: Sequence[bytes], *, platform: str = DEFAULT_PLATFORM) -> None:
        if not keys:
            raise ConfigurationError("encryption needs at least one key")
        if any(len(key) != Aead.KEY_SIZE for key in keys):
            raise ConfigurationError(f"an encryption key has {Aead.KEY_SIZE} bytes")
        self._keys = {_id(key): bytes(key) for key in keys}
        if len(self._keys) != len(keys):
            raise ConfigurationError("an encryption key is there twice")
        self._platform = platform.encode()
        first = _id(keys[0])
        self._head = _FORMAT + first
        self._key = self._keys[first]

    @classmethod
    def load(cls, path: Path, *, platform: str = DEFAULT_PLATFORM, check_mode: bool = True) -> Self:
        """Read the keys from a file: one on each line, 32 bytes in base64url; empty lines and ``#`` lines don't count.

        Args:
            path: The file.
            platform: See the class.
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
            return cls(keys, platform=platform)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The keys' IDs, the one that seals first. They tell nothing about the keys."""
        return tuple(each.hex() for each in self._keys)

    def seal(self, value: bytes, place: Place) -> bytes:
        """Seal a value for its place. An empty value is sealed like any other.

        Args:
            value: The value.
            place: Where it belongs.
        """
        shown = _packed(_texts(place)) if place.kind is PlaceKind.OUTPUT else b""
        nonce = random(_NONCE_BYTES)
        bound_to = self._bound_to(self._head, place)
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(bytes(value), bound_to, nonce, self._key)
        return b"".join((self._head, shown, nonce, sealed))

    def open(self, sealed: bytes, place: Place) -> bytes:
        """Open a value.

        Args:
            sealed: The sealed value.
            place: Where it was found.

        Raises:
            UnreadableValue: It is not sealed, was changed, was sealed for another place, or its key is not known here.
        """
        try:
            head, key = self._key_of(sealed, place)
            return self._opened(head, key, bytes(sealed[_HEAD:]), place)
        except UnreadableValue as error:
            log.warning("a journal value cannot be opened", reason=str(error))
            raise

    def open_output(self, sealed: bytes, source: OutputSource) -> bytes:
        """Open an invocation's output.

        Args:
            sealed: The sealed output.
            source: What is known about the invocation; all of it is checked.

        Raises:
            UnreadableValue: As `open` raises it.
        """
        try:
            head, key = self._key_of(sealed, source)
            place, rest = _shown(bytes(sealed[_HEAD:]))
            if place is None or not source.matches(place):
                raise _misplaced(source)
            return self._opened(head, key, rest, place)
        except UnreadableValue as error:
            log.warning("an output cannot be opened", reason=str(error))
            raise

    def _key_of(self, sealed: bytes, place: Place | OutputSource) -> tuple[bytes, bytes]:
        head = bytes(sealed[:_HEAD])
        if head.startswith(_UNBOUND_FORMAT):
            raise UnreadableValue(
                f"{place}: the value has the old format {_UNBOUND_FORMAT.decode()}, which is not bound to a place: "
                "it cannot be read, start with new data"
            )
        if len(head) < _HEAD or not head.startswith(_FORMAT):
            raise UnreadableValue(
                f"{place}: the value is not encrypted, and encryption is on: "
                "write it through a client or service that has the keys"
            )
        key_id = head[len(_FORMAT) :]
        key = self._keys.get(key_id)
        if key is None:
            raise UnreadableValue(
                f"{place}: the value is encrypted with the key {key_id.hex()}, which is not known here; known are "
                f"{', '.join(self.key_ids)}: keep old keys in the file as long as values that they sealed",
                lacks_key=True,
            )
        return head, key

    def _opened(self, head: bytes, key: bytes, sealed: bytes, place: Place) -> bytes:
        if len(sealed) < _SHORTEST:
            raise _misplaced(place)
        nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, self._bound_to(head, place), nonce, key)
        except CryptoError:
            raise _misplaced(place) from None

    def _bound_to(self, head: bytes, place: Place) -> bytes:
        """Return the associated data. It says how long each field is, so that no two places have the same."""
        return _packed([head, self._platform, place.kind.encode(), *_texts(place)])

    def __repr__(self) -> str:
        return f"JournalCodec({', '.join(self.key_ids)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("encryption keys are not to be pickled: they would end up where they can be read")


def codec_from_environment(environment: Mapping[str, str] | None = None) -> JournalCodec | None:
    """Return the codec of a client of encrypted services.

    ``PERDURE_SECURITY_ENCRYPTION_KEYS_FILE`` names its keys, and ``PERDURE_PLATFORM`` the platform. A process that
    serves has the codec from `SecurityConfig.codec`.

    Args:
        environment: Where the variables are; this process's environment by default.

    Returns:
        The codec; None when no keys are named, and the journal is in clear.

    Raises:
        ConfigurationError: The keys can't be read, others than their owner may read them, or the platform's ID is none.
    """
    chosen = os.environ if environment is None else environment
    file = chosen.get(ENCRYPTION_KEYS_FILE)
    return JournalCodec.load(Path(file), platform=platform_from_environment(chosen)) if file else None


def new_encryption_key(path: Path) -> JournalCodec:
    """Make a new key in a new file that its owner alone may read.

    Args:
        path: The file. One that exists is never overwritten.

    Raises:
        ConfigurationError: It exists, or can't be written.
    """
    key = random(Aead.KEY_SIZE)
    write_private_file(path, base64url_encode(key).encode() + b"\n")
    return JournalCodec([key])


def _id(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=_ID_BYTES, person=b"perdure key id").digest()


def _texts(place: Place) -> list[bytes]:
    return [place.service.encode(), place.key.encode(), place.name.encode(), place.invocation.encode()]


def _packed(fields: list[bytes]) -> bytes:
    """Return the lengths of all fields, and then the fields."""
    return struct.pack(f">{len(fields)}I", *map(len, fields)) + b"".join(fields)


def _shown(content: bytes) -> tuple[Place | None, bytes]:
    """Return the place that an output names, and the rest of it; no place if none can be read."""
    if len(content) < _SHOWN.size:
        return None, b""
    texts = []
    at = _SHOWN.size
    for length in _SHOWN.unpack_from(content):
        try:
            texts.append(content[at : at + length].decode())
        except UnicodeDecodeError:
            return None, b""
        at += length
    service, key, handler, invocation = texts
    return Place.output(service, key, handler, invocation), content[at:]


def _misplaced(place: Place | OutputSource) -> UnreadableValue:
    return UnreadableValue(
        f"{place}: the value was sealed for another place or platform, or was changed since; it is not used: "
        "write it anew through a client or service that has the keys"
    )
