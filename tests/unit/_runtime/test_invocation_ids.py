"""Validation and construction of the engine's IDs."""

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
    with pytest.raises(InvalidInput, match="is not the ID of an external signal"):
        check_signal_id("prom_1" + encoded(invocation + number.to_bytes(4, "big")))


def test_derive_awakeable_from_invocation():
    invocation = "inv_1aCrLf7fTjVL3KvBA0mNaOIQnblQu9BnGJ"  # IDs of a real engine
    assert signal_id(invocation) == "sign_14eVx2L38snvdHRK5tRd3KAlLZIRj6Dd7AAAAEQ"
    assert pending_id(invocation, 17) == "prom_14eVx2L38snvdHRK5tRd3KAlLZIRj6Dd7AAAAEQ"


@given(INVOCATIONS, st.integers(0, 16))
def test_reject_signals_of_the_engine(invocation, number):
    """Signal 1 cancels the invocation."""
    with pytest.raises(InvalidInput, match="is not the ID of an external signal"):
        check_signal_id("sign_1" + encoded(invocation + number.to_bytes(4, "big")))


@given(st.binary(max_size=60).filter(lambda content: len(content) != 28))
def test_reject_id_of_other_length(content):
    with pytest.raises(InvalidInput, match="is not the ID of an external signal"):
        check_signal_id("sign_1" + encoded(content))


@given(st.text())
def test_reject_malformed_signal_id(text):
    for check in (check_signal_id, check_invocation_id):
        with pytest.raises(InvalidInput) as refused:
            check(text)
        assert len(refused.value.message) < 800, "long input is truncated"


@pytest.mark.parametrize(
    "id_", ["inv_1" + "a" * 32, "inv_1" + "a" * 34, "inv_1" + "a" * 32 + "-", "inv_1" + "a" * 33 + "\n"]
)
def test_invocation_id_has_33_characters(id_):
    assert check_invocation_id("inv_1" + "aZ0" * 11)
    with pytest.raises(InvalidInput, match="is not the ID of an invocation"):
        check_invocation_id(id_)


def test_reject_surplus_bits_of_last_character():
    id_ = "sign_1" + encoded(bytes(27) + b"\x20")
    assert check_signal_id(id_)
    with pytest.raises(InvalidInput):
        check_signal_id(id_[:-1] + chr(ord(id_[-1]) + 1))
