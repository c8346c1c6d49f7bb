"""Ed25519 keys of engines, issuers and actors.

Public keys are written as Restate writes them: ``publickeyv1_`` and 32 bytes in base 58. Private keys are stored in
private PKCS#8 PEM files, which restate-server and OpenSSL read.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Final, NoReturn, Self

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from perdure.errors import ConfigurationError
from perdure.security.encodings import base58_decode, base58_encode
from perdure.security.private_files import read_private_file, write_private_file

_PREFIX: Final = "publickeyv1_"
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
# PrivateKeyInfo, version 0, id-Ed25519, an octet string in an octet string (RFC 8410, section 7); the seed follows.
_PKCS8: Final = bytes.fromhex("302e020100300506032b657004220420")
_BEGIN: Final = b"-----BEGIN PRIVATE KEY-----"
_END: Final = b"-----END PRIVATE KEY-----"


class BadSignature(ValueError):
    """The signature was not made by this key over this message."""


class PublicKey:
    """Ed25519 public key, compared by value.

    Raises:
        ValueError: The data does not have 32 bytes.
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
        """Return the key with the ID ``publickeyv1_…``.

        Raises:
            ConfigurationError: The text is not a public key.
        """
        shown = text[:80]
        if not text.startswith(_PREFIX):
            raise ConfigurationError(f"'{shown}' is not a public key: it must begin with {_PREFIX}")
        try:
            return cls(base58_decode(text.removeprefix(_PREFIX)))
        except ValueError as error:
            raise ConfigurationError(f"'{shown}' is not a public key: {error}") from error

    def verify(self, message: bytes, signature: bytes) -> None:
        """Verify a signature of 64 bytes over a message.

        Raises:
            BadSignature: The signature does not match.
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
    """Ed25519 private key. Its representation shows the public key only, and it cannot be pickled.

    Args:
        seed: The 32 secret bytes.

    Raises:
        ValueError: The seed does not have 32 bytes.
    """

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != _KEY_BYTES:
            raise ValueError(f"a private key has {_KEY_BYTES} bytes, not {len(seed)}")
        self._key = SigningKey(bytes(seed))
        self.public = PublicKey(bytes(self._key.verify_key))
        """The public key."""

    @classmethod
    def generate(cls) -> Self:
        """Generate a new key."""
        return cls(bytes(SigningKey.generate()))

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Return the key in a PEM file: Ed25519 in PKCS#8, not encrypted.

        Raises:
            ConfigurationError: The content is not such a key. The message contains nothing of it.
        """
        body = pem.strip()
        if not (body.startswith(_BEGIN) and body.endswith(_END)):
            raise ConfigurationError(
                "not a private key in PEM: it must begin with 'BEGIN PRIVATE KEY' (PKCS#8, not encrypted); "
                "create one with `perdure keys new FILE`"
            )
        try:
            der = base64.b64decode(b"".join(body[len(_BEGIN) : -len(_END)].split()), validate=True)
        except binascii.Error:
            raise ConfigurationError("the private key is unreadable: its PEM is damaged") from None
        if len(der) != len(_PKCS8) + _KEY_BYTES or not der.startswith(_PKCS8):
            raise ConfigurationError(
                "the private key is not Ed25519 in PKCS#8; create one with `perdure keys new FILE`"
            )
        return cls(der[len(_PKCS8) :])

    def to_pem(self) -> bytes:
        """Return the content of a PEM file with this key, which is secret."""
        text = base64.b64encode(_PKCS8 + bytes(self._key))
        return b"\n".join((_BEGIN, text, _END, b""))

    @classmethod
    def load(cls, path: Path, *, check_mode: bool = True) -> Self:
        """Read a key from a PEM file.

        Args:
            path: The file.
            check_mode: Refuse a file that other users can read.

        Raises:
            ConfigurationError: The file is missing, readable by others, or not a key. The message names the file.
        """
        content = read_private_file(path, check_mode=check_mode)
        try:
            return cls.from_pem(content)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write the key to a new private file.

        Raises:
            ConfigurationError: The file exists or cannot be written.
        """
        write_private_file(path, self.to_pem())

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message: 64 bytes, always the same for the same message.

        Args:
            message: The message. Begin each kind of message with a distinct text, so that a signature cannot be used
                for another kind.
        """
        return bytes(self._key.sign(message).signature)

    def __repr__(self) -> str:
        return f"PrivateKey(of {self.public.id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys cannot be pickled: the pickle would expose the secret")


def parse_keys(text: str) -> tuple[PublicKey, ...]:
    """Return the public keys in a comma-separated setting.

    Raises:
        ConfigurationError: An item is not a public key.
    """
    return tuple(PublicKey.parse(item.strip()) for item in text.split(",") if item.strip())
