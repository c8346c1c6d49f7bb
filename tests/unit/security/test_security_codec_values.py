from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ConfigurationError, UnreadableValue, is_terminal
from perdure.security.codec import SecretBoxCodec, new_encryption_key
from perdure.security.encodings import base64url_encode

FIRST, SECOND = b"1" * 32, b"2" * 32


@given(st.binary(max_size=200))
async def test_what_is_sealed_comes_back_and_does_not_show(value: bytes):
    codec = SecretBoxCodec([FIRST])
    sealed = codec.encode(value)
    assert await codec.decode(sealed) == value
    if len(value) >= 8:
        assert value not in sealed


async def test_nothing_stays_nothing():
    codec = SecretBoxCodec([FIRST])
    assert codec.encode(b"") == b""
    assert await codec.decode(b"") == b""


def test_the_same_value_is_never_sealed_alike():
    codec = SecretBoxCodec([FIRST])
    assert codec.encode(b"value") != codec.encode(b"value")


def test_the_first_key_seals_and_each_opens():
    old, new = SecretBoxCodec([FIRST]), SecretBoxCodec([SECOND, FIRST])
    between = SecretBoxCodec([FIRST, SECOND])  # the new key is known everywhere before it is used
    assert new.open(old.encode(b"value")) == b"value"
    assert between.open(new.encode(b"value")) == b"value"
    assert new.key_ids == tuple(reversed(between.key_ids))
    with pytest.raises(UnreadableValue, match=f"the key {new.key_ids[0]}, which isn't known here; known are"):
        old.open(new.encode(b"value"))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b'{"plain":1}', "is not encrypted"),
        (b"pd", "is not encrypted"),
        (b"pd1", "which isn't known here"),
        (b"pd1" + b"x" * 60, "which isn't known here"),
        (SecretBoxCodec([FIRST]).encode(b"value")[:20], "is damaged"),
        (SecretBoxCodec([FIRST]).encode(b"value")[:-1], "is damaged"),
        (SecretBoxCodec([FIRST]).encode(b"value") + b"x", "is damaged"),
    ],
)
async def test_what_cant_be_opened_is_said_and_retried(value: bytes, why: str, caplog: pytest.LogCaptureFixture):
    with pytest.raises(UnreadableValue, match=why) as refused:
        await SecretBoxCodec([FIRST]).decode(value)
    # Terminal, it would fail sagas, and undo them, where a process only lacks a key for a while.
    assert not is_terminal(refused.value)
    assert "can't be read" in caplog.text
    assert "plain" not in caplog.text


def test_plain_values_can_be_let_in_while_encryption_is_turned_on():
    codec = SecretBoxCodec([FIRST], allow_plain=True)
    assert codec.open(b'{"plain":1}') == b'{"plain":1}'
    assert codec.open(codec.encode(b"value")) == b"value"
    with pytest.raises(UnreadableValue):
        codec.open(SecretBoxCodec([SECOND]).encode(b"value"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "at least one key"),
        ("# only a remark\n\n", "at least one key"),
        ("x\n", "line 1: this is no key"),
        (f"# first\n{base64url_encode(FIRST)}\n{base64url_encode(b'short')}", "has 32 bytes"),
        (f"{base64url_encode(FIRST)}\n{base64url_encode(FIRST)}", "is there twice"),
        (f"{base64url_encode(FIRST)}\nä", "line 2: this is no key"),
    ],
)
def test_a_file_that_holds_no_keys_is_refused_without_showing_it(tmp_path: Path, content: str, why: str):
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=why) as refused:
        SecretBoxCodec.load(path)
    assert base64url_encode(FIRST) not in str(refused.value)


def test_keys_never_show_themselves(tmp_path: Path):
    codec = new_encryption_key(tmp_path / "keys")
    assert SecretBoxCodec.load(tmp_path / "keys").key_ids == codec.key_ids
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").read_text().strip() not in repr(codec)
    assert repr(codec) == f"SecretBoxCodec({codec.key_ids[0]})"
    with pytest.raises(TypeError, match="not to be pickled"):
        pickle.dumps(codec)
