from __future__ import annotations

import json
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from perdure._runtime.plain_text import (
    Reason,
    check_visible,
    escape_control,
    escape_invisible,
    escape_json,
    escape_rest,
    is_visible,
    message_text,
    shorten,
    text_of,
)

INVISIBLE = ("\x00", "\b", "\n", "\r", "\t", "\x1b", "\x7f", "\x9b", "\u00ad", "\u061c", "\u200b", "\u200d", "\u200e")
INVISIBLE += ("\u202e", "\u2028", "\u2029", "\u2066", "\ufeff", "\ufe0f", "\u3164", "\ud800", "\U000e0041")
ESCAPE = re.compile(r"(\\+)(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")

# Includes surrogates, which hypothesis omits, and many rare characters.
texts = st.text(st.one_of(st.characters(categories=None), st.sampled_from([*INVISIBLE, "\\", "x", "u", "1", "b", "0"])))


def unescape(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        backslashes, escape = found.groups()
        character = chr(int(escape[1:], 16)) if len(backslashes) % 2 else escape
        return "\\" * (len(backslashes) // 2) + character

    return ESCAPE.sub(one, text)


@given(texts)
@example("\\\x1b")
@example("\\x1b")
@example("\\\\x1b\x1b")
def test_escaped_text_is_visible_and_reversible(text: str):
    escaped = escape_invisible(text)
    assert not {unicodedata.category(each) for each in escaped} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert unescape(escaped) == text


@given(texts)
def test_escape_keeps_given_characters(text: str):
    assert escape_invisible(text, keep="\n").count("\n") == text.count("\n")


@pytest.mark.parametrize(
    "text", ["plain", "zoë", "שלום", "日本\u3000語", "C:\\new\\table", "[b]", "a\u00a0b", "e\u0301"]
)
def test_keep_readable_text(text: str):
    assert escape_invisible(text) == check_visible(text) == text


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_escaped_json_is_equivalent(value: object):
    escaped = escape_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert json.loads(escaped) == value
    assert escape_invisible(escaped.replace("\\", ""), keep="\n") == escaped.replace("\\", "")


@pytest.mark.parametrize("character", INVISIBLE)
def test_reject_invisible_characters_by_name(character: str):
    with pytest.raises(ValueError, match=rf"U\+{ord(character):04X}.*position 4"):
        check_visible(f"ada{character}@example.com")


@pytest.mark.parametrize("reason", ["", "می\u200cشود", "fine \u2764\ufe0f", "👩\u200d✈\ufe0f", "5 > 4 & \\n"])
def test_accept_reasons_in_any_script(reason: str):
    assert TypeAdapter(Reason).validate_python(reason) == reason


@pytest.mark.parametrize("reason", ["a\nb", "\x1b[2J", "\u202eoff", "\u2066x", "a\rb", "x" * 2001])
def test_reasons_are_single_visible_line(reason: str):
    with pytest.raises(ValidationError):
        TypeAdapter(Reason).validate_python(reason)


@given(texts)
def test_control_characters_are_escaped_once(text: str):
    escaped = escape_control(text)
    assert escape_control(escaped) == escaped
    assert not {unicodedata.category(each) for each in escaped.replace("\n", "").replace("\t", "")} & {"Cc", "Cs"}
    escaped.encode()


@given(texts)
def test_rest_of_repr_is_escaped(text: str):
    assert all(map(is_visible, escape_rest(repr(text))))


@given(texts, st.integers(100, 200))
def test_message_is_bounded_and_idempotent(text: str, limit: int):
    message = message_text(text, limit)
    assert len(message) <= limit
    assert message_text(message, limit) == message


@pytest.mark.parametrize("length", [100, 101, 5_000_000])
def test_shortened_text_keeps_both_ends(length: int):
    text = shorten("a" + "." * (length - 2) + "z", 100)
    assert len(text) <= 100
    assert (text[0], text[-1]) == ("a", "z")
    assert ("characters omitted" in text) is (length > 100)


class Broken:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("convert", [str, repr])
def test_failing_repr_is_named(error: BaseException, convert):
    assert text_of(Broken(error), convert) == f"<Broken whose {convert.__name__} raises {type(error).__name__}>"


def test_huge_integer_has_text():
    assert text_of(10**5000) == "<int whose str raises ValueError>"
