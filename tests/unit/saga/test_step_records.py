"""What is kept of a step, as earlier versions wrote it and read it."""

from __future__ import annotations

from perdure.saga.messages import RollbackRequest
from perdure.saga.policy import StepRecord

RECORDED = (
    '{"position":1,"step":"a","step_id":"0","compensation":null,"payload":null,"group":null,"pivot":false,'
    '"after_others":false,"parent":""}'
)
"""A step as it is in the state, and so in the journal, of a saga that an earlier version began."""


def test_a_step_is_recorded_as_earlier_versions_did_so_that_their_sagas_can_be_replayed():
    record = StepRecord.model_validate_json(RECORDED)
    assert record.timed_out == []
    assert record.model_dump_json() == RECORDED


def test_attempts_that_timed_out_go_to_the_rollback_with_the_step():
    steps = [StepRecord(position=1, step="a", step_id="0", timed_out=["inv_1", "inv_2"])]
    sent = RollbackRequest(saga_id="s", service="S", steps=steps, running={1: "inv_2"}, reason="")
    assert RollbackRequest.model_validate_json(sent.model_dump_json()).steps == steps
