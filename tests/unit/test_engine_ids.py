"""IDs of the engine: valid ones are accepted, all others are refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure._runtime.invocation_ids import check_invocation_id, check_signal_id, pending_id, signal_id
from perdure.errors import InvalidInput


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


INVOCATIONS = st.binary(min_size=24, max_size=24)
AWAKEABLES = st.integers(17, 2**32 - 1)


@given(INVOCATIONS, AWAKEABLES)
def test_accept_awakeable_ids(invocation, number):
    id_ = "sign_1" + encoded(invocation + number.to_bytes(4, "big"))
    assert check_signal_id(id_) == id_


@given(INVOCATIONS, AWAKEABLES)
def test_reject_ids_of_pending_calls(invocation, number):
    with pytest.raises(InvalidInput, match="is no id of an external signal"):
        check_signal_id("prom_1" + encoded(invocation + number.to_bytes(4, "big")))


def test_awakeables_follow_from_the_invocation():
    invocation = "inv_1aCrLf7fTjVL3KvBA0mNaOIQnblQu9BnGJ"  # an engine gave both
    assert signal_id(invocation) == "sign_14eVx2L38snvdHRK5tRd3KAlLZIRj6Dd7AAAAEQ"
    assert pending_id(invocation, 17) == "prom_14eVx2L38snvdHRK5tRd3KAlLZIRj6Dd7AAAAEQ"


@given(INVOCATIONS, st.integers(0, 16))
def test_reject_signals_of_the_engine(invocation, number):
    """Signal 1 cancels the invocation."""
    with pytest.raises(InvalidInput, match="is no id of an external signal"):
        check_signal_id("sign_1" + encoded(invocation + number.to_bytes(4, "big")))


@given(st.binary(max_size=60).filter(lambda content: len(content) != 28))
def test_an_id_of_another_length_is_refused(content):
    with pytest.raises(InvalidInput, match="is no id of an external signal"):
        check_signal_id("sign_1" + encoded(content))


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
    id_ = "sign_1" + encoded(bytes(27) + b"\x20")
    assert check_signal_id(id_)
    with pytest.raises(InvalidInput):
        check_signal_id(id_[:-1] + chr(ord(id_[-1]) + 1))
