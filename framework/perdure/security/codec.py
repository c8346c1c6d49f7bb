"""Encryption at rest: the engine's journal contains values sealed with XChaCha20-Poly1305 (libsodium through PyNaCl).

Inputs, outputs, results of side effects, state, promises, awakeables, signals, and the parameters and responses of
calls are sealed. Keys, names, headers and error messages are not: put no secrets there. The engine's user interface
shows sealed bytes. Callers need the keys (`perdure.engine.ingress.IngressClient`, the gateway).

Each value is bound to its `perdure._runtime.places.Place` and platform, which are the associated data of the AEAD. A
value that is copied to another place does not open there.

A sealed value consists of ``pd2``, the key ID (8 bytes), the place if it is an output, a nonce (24 bytes), and the
ciphertext with its tag (16 bytes). Random nonces of 192 bits do not collide.

To rotate keys, add the new key as the second line of every process's file, then make it the first. The first key seals,
all keys open. Remove an old key when no value sealed with it is left: after the longest retention, and while no state
uses it.
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
from perdure.security.platform import DEFAULT_PLATFORM, platform_from_environment
from perdure.security.private_files import read_private_file, write_private_file

ENCRYPTION_KEYS_FILE: Final = "PERDURE_SECURITY_ENCRYPTION_KEYS_FILE"
"""The setting that enables encryption, in services and their callers."""

_FORMAT: Final = b"pd2"
_ID_BYTES: Final = 8
_HASH_BYTES: Final = 16
_HEAD: Final = len(_FORMAT) + _ID_BYTES
_NONCE_BYTES: Final = Aead.NONCE_SIZE
_MIN_BYTES: Final = _NONCE_BYTES + Aead.MACBYTES
_PLACE_LENGTHS: Final = struct.Struct(">4I")  # the lengths of the fields of an output's place

log = get_logger(__name__)


class JournalCodec(ValueCodec):
    """Seals and opens journal values. Its representation shows key IDs only, and it cannot be pickled.

    Args:
        keys: Secret keys of 32 bytes. The first key seals, all keys open.
        platform: The platform ID. Values of another platform do not open, even with the same keys.

    Raises:
        ConfigurationError: There is no key, a duplicate, or a key of another length.
    """

    def __init__(self, keys: Sequence[bytes], *, platform: str = DEFAULT_PLATFORM) -> None:
        if not keys:
            raise ConfigurationError("encryption needs at least one key")
        if any(len(key) != Aead.KEY_SIZE for key in keys):
            raise ConfigurationError(f"an encryption key has {Aead.KEY_SIZE} bytes")
        self._keys = {_id(key): bytes(key) for key in keys}
        if len(self._keys) != len(keys):
            raise ConfigurationError("an encryption key is listed twice")
        self._platform = platform.encode()
        first = _id(keys[0])
        self._head = _FORMAT + first
        self._key = self._keys[first]

    @classmethod
    def load(cls, path: Path, *, platform: str = DEFAULT_PLATFORM, check_mode: bool = True) -> Self:
        """Read the keys from a file with one key of 32 bytes in base64url per line, empty lines and ``#`` comments.

        Args:
            path: The file.
            platform: See the class.
            check_mode: Refuse a file that other users can read.

        Raises:
            ConfigurationError: The file is missing, readable by others, or invalid; the message names the line.
        """
        keys = []
        for number, line in enumerate(read_private_file(path, check_mode=check_mode).splitlines(), 1):
            text = line.strip()
            if not text or text.startswith(b"#"):
                continue
            try:
                keys.append(base64url_decode(text.decode("ascii")))
            except ValueError:
                raise ConfigurationError(f"{path}, line {number}: not a key in base64url") from None
        try:
            return cls(keys, platform=platform)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The key IDs, that of the sealing key first. They reveal nothing about the keys."""
        return tuple(key_id.hex() for key_id in self._keys)

    def seal(self, value: bytes, place: Place) -> bytes:
        """Seal a value for its place. Empty values are sealed, too."""
        output_place = _pack(_fields(place)) if place.kind is PlaceKind.OUTPUT else b""
        nonce = random(_NONCE_BYTES)
        associated = self._associated_data(self._head, place)
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(bytes(value), associated, nonce, self._key)
        return b"".join((self._head, output_place, nonce, sealed))

    def keyed_hashes(self, text: str) -> list[str]:
        """Return keyed hashes of a text, for names that must be searchable but must not reveal it.

        Equal texts have equal hashes, which readers without a key can see.
        """
        content = _pack([self._platform, text.encode()])
        return [
            hashlib.blake2b(content, key=key, digest_size=_HASH_BYTES, person=b"perdure name").hexdigest()
            for key in self._keys.values()
        ]

    def open(self, sealed: bytes, place: Place) -> bytes:
        """Open a value that was read at a place.

        Raises:
            UnreadableValue: The value is not sealed, was modified, was sealed for another place, or its key is unknown.
        """
        try:
            head, key = self._find_key(sealed, place)
            return self._decrypt(head, key, bytes(sealed[_HEAD:]), place)
        except UnreadableValue as error:
            log.warning("a journal value cannot be opened", reason=str(error))
            raise

    def open_output(self, sealed: bytes, source: OutputSource) -> bytes:
        """Open the output of an invocation.

        Args:
            sealed: The sealed output.
            source: The known properties of the invocation, all of which must match.

        Raises:
            UnreadableValue: See `open`.
        """
        try:
            head, key = self._find_key(sealed, source)
            place, rest = _split_place(bytes(sealed[_HEAD:]))
            if place is None or not source.matches(place):
                raise _misplaced(source)
            return self._decrypt(head, key, rest, place)
        except UnreadableValue as error:
            log.warning("an output cannot be opened", reason=str(error))
            raise

    def _find_key(self, sealed: bytes, place: Place | OutputSource) -> tuple[bytes, bytes]:
        head = bytes(sealed[:_HEAD])
        if len(head) < _HEAD or not head.startswith(_FORMAT):
            raise UnreadableValue(
                f"{place}: the value is not encrypted in the format {_FORMAT.decode()}, and encryption is enabled: "
                "write it through a client or service that has the keys"
            )
        key_id = head[len(_FORMAT) :]
        key = self._keys.get(key_id)
        if key is None:
            raise UnreadableValue(
                f"{place}: the value is encrypted with the unknown key {key_id.hex()}; the known keys are "
                f"{', '.join(self.key_ids)}: keep an old key in the file as long as values sealed with it",
                lacks_key=True,
            )
        return head, key

    def _decrypt(self, head: bytes, key: bytes, sealed: bytes, place: Place) -> bytes:
        if len(sealed) < _MIN_BYTES:
            raise _misplaced(place)
        nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        associated = self._associated_data(head, place)
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, associated, nonce, key)
        except CryptoError:
            raise _misplaced(place) from None

    def _associated_data(self, head: bytes, place: Place) -> bytes:
        """Return the associated data, in which field lengths keep different places distinct."""
        return _pack([head, self._platform, place.kind.encode(), *_fields(place)])

    def __repr__(self) -> str:
        return f"JournalCodec({', '.join(self.key_ids)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("encryption keys cannot be pickled: the pickle would expose them")


def codec_from_environment(environment: Mapping[str, str] | None = None) -> JournalCodec | None:
    """Return the codec for a client of encrypted services, or None without encryption.

    It reads ``PERDURE_SECURITY_ENCRYPTION_KEYS_FILE`` and ``PERDURE_PLATFORM``. Processes that serve use
    `SecurityConfig.codec` instead.

    Args:
        environment: The environment variables; those of this process by default.

    Raises:
        ConfigurationError: The keys cannot be read, are readable by others, or the platform ID is invalid.
    """
    variables = os.environ if environment is None else environment
    file = variables.get(ENCRYPTION_KEYS_FILE)
    return JournalCodec.load(Path(file), platform=platform_from_environment(variables)) if file else None


def new_encryption_key(path: Path) -> JournalCodec:
    """Create a key in a new private file.

    Raises:
        ConfigurationError: The file exists or cannot be written.
    """
    key = random(Aead.KEY_SIZE)
    write_private_file(path, base64url_encode(key).encode() + b"\n")
    return JournalCodec([key])


def _id(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=_ID_BYTES, person=b"perdure key id").digest()


def _fields(place: Place) -> list[bytes]:
    return [place.service.encode(), place.key.encode(), place.name.encode(), place.invocation.encode()]


def _pack(fields: list[bytes]) -> bytes:
    """Return the lengths of all fields, followed by the fields."""
    return struct.pack(f">{len(fields)}I", *map(len, fields)) + b"".join(fields)


def _split_place(content: bytes) -> tuple[Place | None, bytes]:
    """Return the place of an output and the rest of its content; None for a malformed place."""
    if len(content) < _PLACE_LENGTHS.size:
        return None, b""
    fields = []
    offset = _PLACE_LENGTHS.size
    for length in _PLACE_LENGTHS.unpack_from(content):
        try:
            fields.append(content[offset : offset + length].decode())
        except UnicodeDecodeError:
            return None, b""
        offset += length
    service, key, handler, invocation = fields
    return Place.output(service, key, handler, invocation), content[offset:]


def _misplaced(place: Place | OutputSource) -> UnreadableValue:
    return UnreadableValue(
        f"{place}: the value was sealed for another place or platform, or was modified: "
        "write it again through a client or service that has the keys"
    )
