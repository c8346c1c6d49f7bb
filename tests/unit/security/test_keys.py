"""Ed25519 keys, their files and encodings."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ConfigurationError
from perdure.security import BadSignature, PrivateKey, PublicKey, json_digest
from perdure.security.encodings import (
    base58_decode,
    base58_encode,
    base64url_decode,
    base64url_encode,
    canonical_json,
)

# RFC 8032, section 7.1, test 2.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_sign_rfc_8032_test_vector():
    key = PrivateKey(SEED)
    assert key.sign(b"\x72") == SIGNATURE
    assert key.public == PublicKey(PUBLIC)
    key.public.verify(b"\x72", SIGNATURE)


@pytest.mark.parametrize(
    ("message", "signature"),
    [
        (b"\x73", SIGNATURE),
        (b"\x72", SIGNATURE[:-1]),
        (b"\x72", b""),
        (b"\x72", SIGNATURE + b"\0"),
        (b"\x72", bytes(64)),
        (b"\x72", SIGNATURE[:32] + b"\xff" * 32),
    ],
)
def test_reject_other_signatures(message: bytes, signature: bytes):
    with pytest.raises(BadSignature):
        PublicKey(PUBLIC).verify(message, signature)


def test_reject_signature_by_small_order_key():
    # A key of small order accepts signatures made without a private key.
    weak = PublicKey(bytes([1]) + bytes(31))
    with pytest.raises(BadSignature):
        weak.verify(b"anything", bytes([1]) + bytes(63))


def test_public_key_has_restate_format():
    # The example of Restate's documentation.
    text = "publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f"
    assert PublicKey.parse(text).id == text
    assert repr(PublicKey.parse(text)) == f"PublicKey({text})"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must begin with"),
        ("w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6f", "must begin with"),
        ("publickeyv1_", "has 32 bytes, not 0"),
        ("publickeyv1_w7YHemBctH5Ck2nQRQ47iBBqhNHy4FV7t2Usbye2A6", "has 32 bytes, not 31"),
        ("publickeyv1_0" + "1" * 31, "not a base 58 character"),
        ("publickeyv1_" + "1" * 200, "exceed the limit"),
        ("publickeyv1_" + "é" * 40, "not a base 58 character"),
    ],
)
def test_reject_malformed_public_key(text: str, reason: str):
    with pytest.raises(ConfigurationError, match=reason):
        PublicKey.parse(text)


def openssl(*arguments: str | Path) -> bytes:
    command = shutil.which("openssl")
    if command is None:
        pytest.skip("openssl is not installed")
    return subprocess.run([command, *arguments], check=True, capture_output=True).stdout


def test_key_files_are_compatible_with_openssl(tmp_path: Path):
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    PrivateKey(SEED).save(ours)
    assert openssl("pkey", "-in", ours, "-pubout", "-outform", "DER")[-32:] == PUBLIC
    openssl("genpkey", "-algorithm", "ed25519", "-out", theirs)
    theirs.chmod(0o600)
    key = PrivateKey.load(theirs)
    assert PublicKey(openssl("pkey", "-in", theirs, "-pubout", "-outform", "DER")[-32:]) == key.public


def test_key_file_is_private_and_never_overwritten(tmp_path: Path):
    path = tmp_path / "deep" / "key.pem"
    key = PrivateKey.generate()
    before = os.umask(0)
    try:
        key.save(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match=r"key\.pem exists and keys are never overwritten"):
        PrivateKey.generate().save(path)
    assert PrivateKey.load(path).public == key.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_refuse_key_file_readable_by_others(tmp_path: Path, mode: int):
    path = tmp_path / "key.pem"
    key = PrivateKey.generate()
    key.save(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"readable by others .mode {mode:03o}.*chmod 600"):
        PrivateKey.load(path)
    assert PrivateKey.load(path, check_mode=False).public == key.public


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a private key in PEM"),
        (
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "not a private key in PEM",
        ),
        (b"-----BEGIN PRIVATE KEY-----\nA\n-----END PRIVATE KEY-----\n", "its PEM is damaged"),
        (b"-----BEGIN PRIVATE KEY-----\n\xff\n-----END PRIVATE KEY-----\n", "its PEM is damaged"),
        (b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "is not Ed25519"),
        (b"x" * 100_000, "larger than"),
    ],
)
def test_refuse_malformed_key_file_without_revealing_content(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=reason) as refused:
        PrivateKey.load(path)
    assert str(path) in str(refused.value)
    assert "c2VjcmV0" not in str(refused.value)


def test_error_names_missing_key_file(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"there is no file .*none\.pem"):
        PrivateKey.load(tmp_path / "none.pem")
    with pytest.raises(ConfigurationError, match="cannot read"):
        PrivateKey.load(tmp_path)


def test_private_key_is_never_revealed():
    key = PrivateKey(SEED)
    for shown in (repr(key), str(key), f"{key!r}", "%s" % key):  # noqa: UP031 - each way to format it
        assert key.public.id in shown
        assert SEED.hex() not in shown
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(key)
    with pytest.raises(ValueError, match="32 bytes"):
        PrivateKey(b"short")


@given(st.binary(max_size=60))
def test_base58_and_base64_round_trip(data: bytes):
    assert base58_decode(base58_encode(data)) == data
    assert base64url_decode(base64url_encode(data)) == data


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=12))
def test_base64_has_one_spelling(text: str):
    try:
        data = base64url_decode(text)
    except ValueError:
        return
    assert base64url_encode(data) == text


def test_canonical_json_accepts_everything_in_json():
    assert canonical_json({"b": 1, "a": [None, "ü"]}) == '{"a":[null,"ü"],"b":1}'.encode()
    assert json_digest({"b": 1, "a": 2}) == "d3626ac30a87e6f7a6428233b3c68299976865fa5508e4267c5415c76af7a772"
    assert json_digest("\ud800") != json_digest(float("nan"))
