"""Journal encryption: values open at their place only."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nacl.secret import SecretBox

from perdure._runtime.places import OutputSource, Place, PlaceKind
from perdure.errors import ConfigurationError, UnreadableValue, is_terminal
from perdure.security.codec import (
    ENCRYPTION_KEYS_FILE,
    JournalCodec,
    codec_from_environment,
    new_encryption_key,
)
from perdure.security.config import SecurityConfig
from perdure.security.encodings import base64url_encode
from perdure.security.platform import PLATFORM_SETTING

FIRST, SECOND = b"1" * 32, b"2" * 32
HERE = Place.state("Trips", "t1", "saga")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
places = st.builds(Place, st.sampled_from(PlaceKind), texts, texts, texts, texts)
other_kinds = places.filter(lambda place: place.kind is not PlaceKind.OUTPUT)


def source_of(place: Place) -> OutputSource:
    return OutputSource(place.invocation, place.service, place.key, place.name)


def opens(codec: JournalCodec, sealed: bytes, place: Place) -> bytes:
    if place.kind is PlaceKind.OUTPUT:
        return codec.open_output(sealed, source_of(place))
    return codec.open(sealed, place)


@given(st.binary(max_size=200), places)
def test_sealed_value_opens_at_its_place(value: bytes, place: Place):
    codec = JournalCodec([FIRST])
    sealed = codec.seal(value, place)
    assert opens(codec, sealed, place) == value
    if len(value) >= 8:
        assert value not in sealed


@given(st.binary(max_size=50), places, places)
def test_sealed_value_opens_nowhere_else(value: bytes, place: Place, other: Place):
    assume(place != other)
    codec = JournalCodec([FIRST])
    with pytest.raises(UnreadableValue):
        opens(codec, codec.seal(value, place), other)


@given(places, st.integers(0, 4), st.data())
def test_moving_a_boundary_changes_the_place(place: Place, at: int, data: st.DataObject):
    # Places with equal concatenations differ: `a` of `bc` is not `ab` of `c`.
    fields = [place.service, place.key, place.name, place.invocation]
    joined = "".join(fields)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joined)), min_size=3, max_size=3)))
    moved = [joined[a:b] for a, b in zip([0, *cuts], [*cuts, len(joined)], strict=True)]
    assume(moved != fields)
    codec = JournalCodec([FIRST])
    with pytest.raises(UnreadableValue):
        opens(codec, codec.seal(b"value", place), Place(place.kind, *moved))


@given(st.sampled_from(PlaceKind), st.sampled_from(PlaceKind))
def test_kinds_never_share_a_place(kind: PlaceKind, other: PlaceKind):
    assume(kind != other)
    codec = JournalCodec([FIRST])
    with pytest.raises(UnreadableValue):
        opens(codec, codec.seal(b"value", Place(kind, "S", "k", "n", "i")), Place(other, "S", "k", "n", "i"))


def test_value_does_not_open_on_another_platform():
    ours, theirs = JournalCodec([FIRST]), JournalCodec([FIRST], platform="staging")
    with pytest.raises(UnreadableValue, match="another place or platform"):
        theirs.open(ours.seal(b"value", HERE), HERE)


@pytest.mark.parametrize("text", ["ä", "a b", "a\n", "x" * 65])
def test_reject_unusable_platform_id(text: str, tmp_path: Path):
    new_encryption_key(tmp_path / "keys")
    with pytest.raises(ConfigurationError, match="1 to 64 printable ASCII characters"):
        codec_from_environment({ENCRYPTION_KEYS_FILE: str(tmp_path / "keys"), PLATFORM_SETTING: text})
    with pytest.raises(ConfigurationError, match=r"SecurityConfig\.platform"):
        SecurityConfig.development(platform=text)


def test_clients_take_the_platform_from_the_environment(tmp_path: Path):
    new_encryption_key(tmp_path / "keys")
    environment = {ENCRYPTION_KEYS_FILE: str(tmp_path / "keys")}
    named = codec_from_environment({**environment, PLATFORM_SETTING: "staging"})
    default = codec_from_environment(environment)
    assert named is not None
    assert default is not None
    assert JournalCodec.load(tmp_path / "keys", platform="staging").open(named.seal(b"v", HERE), HERE) == b"v"
    assert JournalCodec.load(tmp_path / "keys", platform="perdure").open(default.seal(b"v", HERE), HERE) == b"v"
    assert codec_from_environment({}) is None


def test_output_opens_with_partial_knowledge():
    codec = JournalCodec([FIRST])
    sealed = codec.seal(b"value", Place.output("Trips", "t1", "run", "inv_1"))
    for source in (
        OutputSource("inv_1"),
        OutputSource("inv_1", "Trips"),
        OutputSource("inv_1", "Trips", handler="run"),
        OutputSource("inv_1", "Trips", "t1", "run"),
    ):
        assert codec.open_output(sealed, source) == b"value"


@pytest.mark.parametrize(
    "source",
    [
        OutputSource("inv_2"),
        OutputSource("inv_1", "Hotels"),
        OutputSource("inv_1", "Trips", "t2"),
        OutputSource("inv_1", "Trips", "t1", "status"),
        OutputSource("inv_1", key=""),
    ],
)
def test_reject_output_of_another_invocation(source: OutputSource):
    codec = JournalCodec([FIRST])
    sealed = codec.seal(b"value", Place.output("Trips", "t1", "run", "inv_1"))
    with pytest.raises(UnreadableValue, match="another place"):
        codec.open_output(sealed, source)


def test_reject_output_with_changed_place():
    codec = JournalCodec([FIRST])
    sealed = codec.seal(b"value", Place.output("Trips", "t1", "run", "inv_1"))
    forged = sealed.replace(b"t1", b"t2")
    assert forged != sealed
    with pytest.raises(UnreadableValue, match="another place"):
        codec.open_output(forged, OutputSource("inv_1", "Trips", "t2", "run"))


@given(st.binary(max_size=200))
def test_reject_garbage_behind_a_genuine_head(rest: bytes):
    codec = JournalCodec([FIRST])
    head = codec.seal(b"value", HERE)[:11]
    with pytest.raises(UnreadableValue):
        codec.open(head + rest, HERE)
    with pytest.raises(UnreadableValue):
        codec.open_output(head + rest, OutputSource("inv_1"))


def test_empty_value_is_sealed():
    codec = JournalCodec([FIRST])
    assert codec.seal(b"", HERE) != b""
    assert codec.open(codec.seal(b"", HERE), HERE) == b""
    with pytest.raises(UnreadableValue, match="is not encrypted"):
        codec.open(b"", HERE)
    with pytest.raises(UnreadableValue, match="is not encrypted"):
        codec.open_output(b"", OutputSource("inv_1"))


def test_sealing_is_randomised():
    codec = JournalCodec([FIRST])
    assert codec.seal(b"value", HERE) != codec.seal(b"value", HERE)


def test_first_key_seals_and_all_open():
    old, new = JournalCodec([FIRST]), JournalCodec([SECOND, FIRST])
    between = JournalCodec([FIRST, SECOND])  # the new key is distributed before it is used
    assert new.open(old.seal(b"value", HERE), HERE) == b"value"
    assert between.open(new.seal(b"value", HERE), HERE) == b"value"
    assert new.key_ids == tuple(reversed(between.key_ids))
    with pytest.raises(UnreadableValue, match=f"the unknown key {new.key_ids[0]}; the known keys are") as refused:
        old.open(new.seal(b"value", HERE), HERE)
    assert refused.value.lacks_key


def test_reject_value_of_another_format():
    old = b"pd1" + JournalCodec([FIRST]).seal(b"", HERE)[3:11] + bytes(SecretBox(FIRST).encrypt(b"value"))
    with pytest.raises(UnreadableValue, match="is not encrypted in the format pd2"):
        JournalCodec([FIRST]).open(old, HERE)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"plain":1}', "is not encrypted"),
        (b"pd", "is not encrypted"),
        (b"pd2", "is not encrypted"),
        (b"pd2" + b"x" * 60, "the unknown key"),
        (JournalCodec([FIRST]).seal(b"value", HERE)[:20], "was modified"),
        (JournalCodec([FIRST]).seal(b"value", HERE)[:-1], "was modified"),
        (JournalCodec([FIRST]).seal(b"value", HERE) + b"x", "was modified"),
    ],
)
def test_unreadable_value_is_reported_and_retried(value: bytes, reason: str, caplog: pytest.LogCaptureFixture):
    with pytest.raises(UnreadableValue, match=reason) as refused:
        JournalCodec([FIRST]).open(value, HERE)
    # A terminal error would roll sagas back while a process temporarily lacks a key.
    assert not is_terminal(refused.value)
    assert str(HERE) in str(refused.value)
    assert "cannot be opened" in caplog.text
    assert "plain" not in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "at least one key"),
        ("# only a comment\n\n", "at least one key"),
        ("x\n", "line 1: not a key"),
        (f"# first\n{base64url_encode(FIRST)}\n{base64url_encode(b'short')}", "has 32 bytes"),
        (f"{base64url_encode(FIRST)}\n{base64url_encode(FIRST)}", "is listed twice"),
        (f"{base64url_encode(FIRST)}\nä", "line 2: not a key"),
    ],
)
def test_refuse_invalid_keys_file_without_revealing_content(tmp_path: Path, content: str, reason: str):
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=reason) as refused:
        JournalCodec.load(path)
    assert base64url_encode(FIRST) not in str(refused.value)


def test_keys_are_never_revealed(tmp_path: Path):
    codec = new_encryption_key(tmp_path / "keys")
    assert JournalCodec.load(tmp_path / "keys").key_ids == codec.key_ids
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").read_text().strip() not in repr(codec)
    assert repr(codec) == f"JournalCodec({codec.key_ids[0]})"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(codec)
