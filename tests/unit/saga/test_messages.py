"""Messages of rollbacks."""

from __future__ import annotations

from perdure.saga.messages import RollbackStatus


def test_status_contains_its_executions():
    status = (
        '{"saga_id":"s","service":"S","status":"running","strategy":"compensate-all","reason":"r","execution_ids":["one","two"],'
        '"started_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z","steps":[]}'
    )
    found = RollbackStatus.model_validate_json(status)
    assert found.has(["one"])
    assert found.has([])
    assert not found.has(["three"])
