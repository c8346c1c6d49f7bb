"""Stored records of sagas."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perdure.saga.schema import RollbackRequest, StepRecord, step_key


@given(st.integers(1, 999_998))
def test_step_keys_sort_in_step_order(position):
    assert step_key(position) < step_key(position + 1)


def test_request_carries_timed_out_attempts():
    steps = [StepRecord(position=1, step="a", step_id="0", timed_out=["inv_1", "inv_2"])]
    sent = RollbackRequest(saga_id="s", execution="s@1", service="S", steps=steps, running={1: "inv_2"}, reason="")
    assert RollbackRequest.model_validate_json(sent.model_dump_json()).steps == steps
