"""Ids of the engine: what it could have given is let through, anything else is refused before the engine sees it."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.engine_ids import check_invocation_id, check_signal_id
from perdure.errors import InvalidInput

PREFIXES = st.sampled_from(["sign_1", "prom_1"])


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


@given(PREFIXES, st.binary(min_size=28, max_size=28))
def test_the_id_of_a_signal_is_what_it_was(prefix, content):
    assert check_signal_id(prefix + encoded(content)) == prefix + encoded(content)


@given(PREFIXES, st.binary(max_size=60).filter(lambda content: len(content) != 28))
def test_an_id_of_another_length_is_refused(prefix, content):
    with pytest.raises(InvalidInput, match="is no id of an external signal"):
        check_signal_id(prefix + encoded(content))


@given(st.text())
def test_a_text_that_is_no_id_is_refused_with_a_400(text):
    for check in (check_signal_id, check_invocation_id):
        with pytest.raises(InvalidInput) as refused:
            check(text)
        assert len(refused.value.message) < 800, "whatever somebody typed is not repeated in full"


@pytest.mark.parametrize(
    "id_", ["inv_1" + "a" * 32, "inv_1" + "a" * 34, "inv_1" + "a" * 32 + "-", "inv_1" + "a" * 33 + "\n"]
)
def test_an_invocation_has_33_letters_and_digits(id_):
    assert check_invocation_id("inv_1" + "aZ0" * 11)
    with pytest.raises(InvalidInput, match="is no id of an invocation"):
        check_invocation_id(id_)


def test_bits_that_the_last_character_has_too_many_are_refused():
    id_ = "sign_1" + encoded(bytes(28))
    assert id_.endswith("A")
    with pytest.raises(InvalidInput):
        check_signal_id(id_[:-1] + "B")
