"""Ed25519 keys: the engine's, those of issuers, and those of people who act.

Public keys are written as Restate writes them, ``publickeyv1_`` and 32 bytes in base 58. Private keys are kept in
PKCS#8 PEM files, as restate-server and OpenSSL read them, for their owner's eyes alone.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, Self

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from perdure.errors import ConfigurationError
from perdure.security.encodings import base58_decode, base58_encode
from perdure.security.private_files import PRIVATE_FOLDER

__all__ = [
    "PRIVATE_MODE",
    "BadSignature",
    "PrivateKey",
    "PublicKey",
    "parse_keys",
    "read_private_file",
    "write_private_file",
]

PRIVATE_MODE: Final = 0o600
"""The mode of a file with something secret in it."""

_PREFIX: Final = "publickeyv1_"
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
# PrivateKeyInfo, version 0, id-Ed25519, an octet string in an octet string (RFC 8410, section 7); the seed follows.
_PKCS8: Final = bytes.fromhex("302e020100300506032b657004220420")
_BEGIN: Final = b"-----BEGIN PRIVATE KEY-----"
_END: Final = b"-----END PRIVATE KEY-----"
_LARGEST_FILE: Final = 64 * 1024


class BadSignature(ValueError):
    """A signature isn't this key's over this message."""


class PublicKey:
    """The public half of an Ed25519 key. Equal when the keys are.

    Args:
        data: The key's 32 bytes.

    Raises:
        ValueError: It is no key of 32 bytes.
    """

    __slots__ = ("_key", "id")

    def __init__(self, data: bytes) -> None:
        if len(data) != _KEY_BYTES:
            raise ValueError(f"a public key has {_KEY_BYTES} bytes, not {len(data)}")
        self._key = VerifyKey(bytes(data))
        self.id = _PREFIX + base58_encode(bytes(data))
        """The key as text: ``publickeyv1_`` and its bytes in base 58."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key that a text names.

        Args:
            text: ``publickeyv1_…``, as `id` and restate-server write it.

        Raises:
            ConfigurationError: It is none.
        """
        shown = text[:80]
        if not text.startswith(_PREFIX):
            raise ConfigurationError(f"'{shown}' is no public key: it would begin with {_PREFIX}")
        try:
            return cls(base58_decode(text.removeprefix(_PREFIX)))
        except ValueError as error:
            raise ConfigurationError(f"'{shown}' is no public key: {error}") from error

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a signature.

        Args:
            message: What was signed.
            signature: The signature's 64 bytes.

        Raises:
            BadSignature: It isn't this key's signature of this message.
        """
        if len(signature) != _SIGNATURE_BYTES:
            raise BadSignature(f"a signature has {_SIGNATURE_BYTES} bytes, not {len(signature)}")
        try:
            self._key.verify(message, signature)
        except BadSignatureError as error:
            raise BadSignature(f"the signature is not by {self.id}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PublicKey({self.id})"


class PrivateKey:
    """An Ed25519 key that signs. It shows its public half only, and can't be pickled.

    Args:
        seed: The 32 secret bytes.

    Raises:
        ValueError: There are not 32 of them.
    """

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != _KEY_BYTES:
            raise ValueError(f"a private key has {_KEY_BYTES} bytes, not {len(seed)}")
        self._key = SigningKey(bytes(seed))
        self.public = PublicKey(bytes(self._key.verify_key))
        """The half that everybody may know."""

    @classmethod
    def generate(cls) -> Self:
        """Make a new key of the system's randomness."""
        return cls(bytes(SigningKey.generate()))

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Return the key of a PEM file's content.

        Args:
            pem: A PKCS#8 private key (``BEGIN PRIVATE KEY``), Ed25519, not encrypted.

        Raises:
            ConfigurationError: It is something else. The message holds nothing of what it is.
        """
        body = pem.strip()
        if not (body.startswith(_BEGIN) and body.endswith(_END)):
            raise ConfigurationError(
                "this is no private key in PEM: it would begin with 'BEGIN PRIVATE KEY' (PKCS#8, not encrypted); "
                "`perdure keys new FILE` makes one"
            )
        try:
            der = base64.b64decode(b"".join(body[len(_BEGIN) : -len(_END)].split()), validate=True)
        except binascii.Error:
            raise ConfigurationError("this private key can't be read: its PEM is damaged") from None
        if len(der) != len(_PKCS8) + _KEY_BYTES or not der.startswith(_PKCS8):
            raise ConfigurationError("this private key is not Ed25519 in PKCS#8; `perdure keys new FILE` makes one")
        return cls(der[len(_PKCS8) :])

    def to_pem(self) -> bytes:
        """Return the key as the content of a PEM file. It is a secret."""
        text = base64.b64encode(_PKCS8 + bytes(self._key))
        return b"\n".join((_BEGIN, text, _END, b""))

    @classmethod
    def load(cls, path: Path, *, check_mode: bool = True) -> Self:
        """Read a key from its file.

        Args:
            path: A PEM file.
            check_mode: Refuse a file that others than its owner may read.

        Raises:
            ConfigurationError: There is none, others may read it, or it is no key; the message names the file.
        """
        content = read_private_file(path, check_mode=check_mode)
        try:
            return cls.from_pem(content)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the key to a new file that its owner alone may read.

        Args:
            path: The file. One that exists is never overwritten.

        Raises:
            ConfigurationError: It exists, or can't be written.
        """
        write_private_file(path, self.to_pem())

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message, 64 bytes. The same message always has the same one.

        Args:
            message: What to sign. Begin it with words that no other kind of message begins with, so that a signature
                can't be used for what it was not meant for.
        """
        return bytes(self._key.sign(message).signature)

    def __repr__(self) -> str:
        return f"PrivateKey(of {self.public.id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not to be pickled: it would end up where it can be read")


def parse_keys(text: str) -> tuple[PublicKey, ...]:
    """Return the public keys that a setting lists with commas between.

    Args:
        text: The setting.

    Raises:
        ConfigurationError: One of them is no public key.
    """
    return tuple(PublicKey.parse(each.strip()) for each in text.split(",") if each.strip())


def write_private_file(path: Path, content: bytes) -> None:
    """Write something secret to a new file that its owner alone may read.

    Args:
        path: The file. One that exists is never overwritten.
        content: What to write.

    Raises:
        ConfigurationError: It exists, or can't be written.
    """
    try:
        path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        # Created with its mode: a chmod afterwards would leave a moment in which others can open it.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists, and a key is never overwritten: choose another file") from error
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
    except OSError as error:
        with suppress(OSError):  # half a key helps nobody
            path.unlink()
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from error


def read_private_file(path: Path, *, check_mode: bool = True) -> bytes:
    """Read a file with something secret in it.

    Args:
        path: The file.
        check_mode: Refuse a file that others than its owner may read or change. Where another user's file is this
            process's by its group alone, as secrets are that Kubernetes mounts, the group may read it.

    Raises:
        ConfigurationError: There is none, it can't be read, it is too large, or others may read it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of the open file: the name may change hands
            mode = stat.S_IMODE(status.st_mode)
            if check_mode and mode & 0o077 & ~_lent_by_group(status):
                raise ConfigurationError(
                    f"{path} may be read by others (mode {mode:03o}), so it is no secret; run: chmod 600 {path}"
                )
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no file {path}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise ConfigurationError(f"{path} is larger than {_LARGEST_FILE} bytes, so it is no key")
    return content


def _lent_by_group(status: os.stat_result) -> int:
    """Return the bits of a mode without which this process could not read a file that belongs to somebody else."""
    mine = status.st_uid == os.geteuid()
    return 0 if mine or status.st_gid not in {os.getegid(), *os.getgroups()} else stat.S_IRGRP
