"""Canonical names of users and groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from perdure.security.user_names import Approver, GroupName, UserName, VetoHolder, canonical_user

person = TypeAdapter(UserName)


@pytest.mark.parametrize(
    "written",
    [
        "ada@example.com",
        "Ada@Example.COM",
        "  ada@example.com ",
        "\uff41da@example.com",  # fullwidth a
        "\u00a0ada@example.com",
    ],
)
def test_spellings_of_a_name_are_equal(written: str):
    assert person.validate_python(written) == "ada@example.com"


@pytest.mark.parametrize("kind", [UserName, GroupName, Approver, VetoHolder])
@pytest.mark.parametrize(
    "written",
    [
        "ada@example.com\n",
        "ada@exam\u200bple.com",  # zero-width space
        "\ufeffada@example.com",
        "ada\u034f@example.com",  # combining grapheme joiner
        "ada\ufe0f@example.com",  # variation selector
        "ad\x00a@example.com",
        "ada\u202e@example.com",  # right-to-left override
        "ada\u2066@example.com",
        "\x1b[2Jada@example.com",
        "ada\x9b@example.com",
        "ad\u00ada@example.com",
    ],
)
def test_reject_names_with_invisible_characters(kind: object, written: str):
    with pytest.raises(ValidationError, match="invisible character U\\+"):
        TypeAdapter(kind).validate_python(written)


def test_composed_and_decomposed_letters_are_equal():
    assert canonical_user("Zoe\u0308") == canonical_user("zo\u00eb") == "zo\u00eb"


def test_joiner_between_letter_and_mark_is_removed():
    assert canonical_user("zoe\u200d\u0308") == "zo\u00eb"


def test_different_users_stay_different():
    assert canonical_user("ada@example.com") != canonical_user("\u0430da@example.com")  # Cyrillic a
    assert canonical_user("ada b") != canonical_user("adab")


@given(st.text(max_size=30))
def test_canonical_form_is_idempotent(name: str):
    assert canonical_user(canonical_user(name)) == canonical_user(name)


@given(st.text(max_size=30))
def test_canonical_form_ignores_case(name: str):
    assert canonical_user(name) == canonical_user(name.casefold())


@pytest.mark.parametrize("name", ["", " ", "\u200b", "\u3164", "anyone", "ANYONE", "any\u00adone", "a" * 201])
def test_reject_reserved_or_empty_names(name: str):
    with pytest.raises(ValidationError):
        person.validate_python(name)


def test_200_characters_are_allowed():
    assert person.validate_python("a" * 200) == "a" * 200
