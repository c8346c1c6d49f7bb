"""The status of a workflow without steps. tests/e2e has the stream of a real one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from perdure import StatusData
from perdure.saga.timeline import Timeline
from services.console.engine import EngineClient
from services.console.sagas.service import _status

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
PAYING = StatusData(phase="paying", progress=0.5)
DONE = StatusData(phase="refused", is_complete=True, error="no money")


def timeline(result: str | None = None, failure: str | None = None) -> Timeline:
    ended = None if result is None else START + timedelta(seconds=1)
    facts = {"saga_id": "O1", "service": "Orders", "key": "O1", "status": "completed" if result else "running"}
    return Timeline(**facts, started_at=START, ended_at=ended, result=result, failure=failure, steps=[])


@pytest.mark.parametrize(
    ("stored", "end", "expected"),
    [
        (None, {}, None),
        (b'{"another": "program"}', {}, None),
        (PAYING, {}, ("paying", False, None)),
        (PAYING, {"result": "success"}, ("completed", True, None)),
        (PAYING, {"result": "failure", "failure": "killed"}, ("failed", True, "killed")),
        (DONE, {"result": "failure", "failure": "[402] no"}, ("refused", True, "no money")),
    ],
)
async def test_status_from_state_and_result(stored: Any, end: Any, expected: Any):
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/query":
            entry = stored.model_dump_json().encode() if isinstance(stored, StatusData) else stored
            return httpx.Response(200, json={"rows": [] if entry is None else [{"value": entry.hex()}]})
        return httpx.Response(404, json={"message": "service 'Orders' has no handler 'status'"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        status = await _status(EngineClient("http://ingress.test", "http://admin.test", http), timeline(**end))
    assert expected == (status and (status.phase, status.is_complete, status.error))
