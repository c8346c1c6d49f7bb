"""What an earlier version wrote or sends is still read, and what goes to one has nothing in it that it refuses."""

from __future__ import annotations

from perdure.saga.messages import ExternalRollbackRequest, Pass, RollbackRequest, RollbackStatus

EARLIER = '{"saga_id":"s","service":"S","steps":[],"reason":"r","first_hand":true}'


def test_a_rollback_of_an_earlier_version_belongs_to_no_known_run():
    assert RollbackRequest.model_validate_json(EARLIER).runs == []
    request = Pass.model_validate_json(f'{{"generation":0,"request":{EARLIER}}}').request
    assert request is not None
    assert request.first_hand


def test_a_status_of_an_earlier_saga_service_knows_no_runs():
    status = (
        '{"saga_id":"s","service":"S","status":"running","strategy":"compensate-all","reason":"r",'
        '"started_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z","steps":[]}'
    )
    found = RollbackStatus.model_validate_json(status)
    assert found.runs == []
    assert found.has(["one"])


def test_a_status_says_which_runs_it_has():
    status = (
        '{"saga_id":"s","service":"S","status":"running","strategy":"compensate-all","reason":"r","runs":["one","two"],'
        '"started_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z","steps":[]}'
    )
    found = RollbackStatus.model_validate_json(status)
    assert found.has(["one"])
    assert found.has([])
    assert not found.has(["three"])


def test_a_request_to_undo_of_an_earlier_version_names_no_failed_children():
    assert ExternalRollbackRequest.model_validate_json('{"reason":"r","wait":true}').failed_children == []
