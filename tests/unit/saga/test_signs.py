"""Signs of orphans and their explanations."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pytest

from perdure.alerts.conditions import MAX_LISTED
from perdure.engine.admin import AdminClient
from perdure.saga.schema import EXECUTION_ROLLBACKS, ROLLBACK_DISPATCHER, ROLLBACKS
from perdure.saga.signs import Signs

NOW = datetime.now(UTC)
STEP = "saga/000001"
POST: dict[str, Any] = {"service": "AlertDispatcher", "type": "service", "handler": "post"}
EXECUTION = "saga/execution/Trips:1@x"


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count ages from the start of the test; the module may have been imported long before it."""
    monkeypatch.setattr(f"{__name__}.NOW", datetime.now(UTC))


class Engine:
    """Engine with the state of one trip and of its rollback, which counts queries."""

    def __init__(self, names: Collection[str] = (), phase: str = "", passes: Collection[str] = ()) -> None:
        self.names, self.phase, self.passes = names, phase, passes
        self.queries = 0

    @property
    def admin(self) -> AdminClient:
        return AdminClient("http://admin.test", http=httpx.AsyncClient(transport=httpx.MockTransport(self._answer)))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.queries += 1
        sql = json.loads(request.content)["query"]
        rows: list[dict[str, Any]]
        if "sys_invocation_status" in sql:
            rows = [{"key": each} for each in self.passes]
        elif EXECUTION_ROLLBACKS in sql:
            rows = [{"service_key": "Trips:1@x", "phase": self.phase}] if self.phase else []
        else:
            rows = [{"service_name": "Trips", "service_key": "1", "key": name} for name in self.names]
        return httpx.Response(200, json={"rows": rows})


def row(condition: str = "failed", *, service: str = "Trips", age: timedelta = timedelta(0), **more: Any) -> Any:
    orchestration = {"type": "workflow", "handler": "run", "key": "1"}
    other = {
        "id": "inv_1",
        "condition": condition,
        "service": service,
        "since": (NOW - age).isoformat(),
        "number": 1,
    }
    return {**orchestration, **other, **more}


def signs(paused_limit: timedelta | None = timedelta(hours=1)) -> Signs:
    return Signs(timedelta(seconds=5), paused_limit, ["AlertDispatcher"])


@pytest.mark.parametrize(
    ("engine", "unexplained"),
    [
        (Engine(), False),
        (Engine([STEP, "saga/closed/failed"]), False),
        (Engine([STEP]), True),
        (Engine([STEP, "saga/closed/compensating", EXECUTION]), True),
        (Engine([STEP, EXECUTION], "running"), True),
        (Engine([STEP, EXECUTION], "running", ["Trips:1@x"]), False),
        (Engine([STEP, EXECUTION], "rolled_back"), False),
        (Engine([STEP, EXECUTION], "needs_attention"), False),
    ],
    ids=["no-step", "closed", "killed", "not-begun", "stalled", "in-progress", "rolled-back", "dead-letter"],
)
@pytest.mark.parametrize("condition", ["failed", "killed"])
async def test_names_explain_failed_orchestration(condition, engine, unexplained):
    found = signs()
    found.add([row(condition)])
    assert await found.are_unexplained(engine.admin) is unexplained


async def test_explained_sign_is_read_once():
    engine, found = Engine([STEP, "saga/closed/failed"]), signs()
    for _ in range(3):
        found.add([row()])
        assert not await found.are_unexplained(engine.admin)
    assert engine.queries == 1
    found.add([row(age=-timedelta(minutes=1))])  # the key was reused
    assert not await found.are_unexplained(engine.admin)
    assert engine.queries == 2


async def test_unexplained_sign_outlives_its_row():
    found = signs()
    found.add([row()])
    found.add([])
    assert await found.are_unexplained(Engine([STEP]).admin)
    assert not await found.are_unexplained(Engine([STEP, EXECUTION], "rolled_back").admin)


@pytest.mark.parametrize(
    ("paused", "unexplained"),
    [
        (partial(row, "paused", age=timedelta(minutes=59)), False),
        (partial(row, "paused", age=timedelta(minutes=61)), True),
        (partial(row, "paused", service="Hotels", type="service", handler="reserve", age=timedelta(days=1)), False),
        (
            partial(row, "paused", service="AlertDispatcher", type="service", handler="post", age=timedelta(minutes=1)),
            True,
        ),
        (
            partial(row, "paused", service="AlertDispatcher", type="service", handler="post", age=-timedelta(hours=1)),
            False,
        ),
        (partial(row, "paused", handler="roll_back", caller=ROLLBACK_DISPATCHER, age=timedelta(minutes=1)), True),
        (partial(row, "paused", handler="roll_back", caller="Trips", age=timedelta(minutes=1)), False),
    ],
)
async def test_paused_invocation_matters_by_service_and_age(paused: Callable[[], Any], unexplained):
    found = signs()
    found.add([paused()])
    assert await found.are_unexplained(Engine().admin) is unexplained


async def test_failed_start_of_rollback_is_sign_for_minutes():
    lost = {"service": ROLLBACKS, "type": "virtual_object", "handler": "begin", "key": "Trips:1"}
    young, old = signs(), signs()
    young.add([row(**lost)])
    old.add([row(**lost, age=timedelta(minutes=3))])
    assert await young.are_unexplained(Engine().admin)
    assert not await old.are_unexplained(Engine().admin)


async def test_unlisted_failures_are_signs():
    found = signs()
    found.add([row(number=MAX_LISTED + 1)])
    assert await found.are_unexplained(Engine().admin)
