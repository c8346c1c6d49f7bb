"""Signs of orphans: invocations that failed or are paused, and their explanation in single rows of the engine's tables.

The query for orphans reads the history of all sagas. The reconciler runs it when a sign has no explanation. A failed
orchestration costs a few reads by key: if it closed its saga, or its rollback has ended, it is explained for good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final

from perdure.alerts.conditions import MAX_LISTED, MAX_POINT_READS, Condition
from perdure.engine.admin import AdminClient
from perdure.engine.polling import Pace
from perdure.saga.messages import roll_back_handler
from perdure.saga.schema import (
    CLOSED_PREFIX,
    EXECUTION_PREFIX,
    EXECUTION_ROLLBACKS,
    ROLLBACK_DISPATCHER,
    ROLLBACK_SERVICES,
    ROLLBACKS,
    STEP_PREFIX,
    open_passes_sql,
    phases_sql,
    saga_names_sql,
)
from perdure.saga.status import RollbackState

FAILING_SERVICES: Final = (ROLLBACKS, EXECUTION_ROLLBACKS, ROLLBACK_DISPATCHER)
"""Services whose failures are signs, apart from those of orchestrations."""

_SHARE: Final = 0.02
"""Share of a core for explaining signs, which may be many during an outage."""
_BATCH: Final = 100
_ROLL_BACK: Final = roll_back_handler("any", "any").handler
_RELEVANT_FOR: Final = timedelta(minutes=2)
"""How long a sign lasts that no row can explain: the failed start of a rollback, and failures beyond those listed."""
_REMEMBERED_FOR: Final = timedelta(hours=2)


@dataclass(frozen=True)
class Sign:
    """An invocation that failed.

    Args:
        service: Its service.
        key: Its key.
        is_orchestration: Whether it is the main handler of a workflow.
        since: When it failed.
    """

    service: str
    key: str
    is_orchestration: bool
    since: datetime


class Signs:
    """Signs without an explanation so far.

    Args:
        grace: How long an invocation must have been paused.
        paused_limit: How long an orchestration must have been paused; None to ignore paused orchestrations.
        dispatchers: Services whose paused invocations are signs, apart from those of the rollback.
    """

    def __init__(self, grace: timedelta, paused_limit: timedelta | None, dispatchers: Collection[str]) -> None:
        self._grace = grace
        self._paused_limit = paused_limit
        self._resumed = {*ROLLBACK_SERVICES, *dispatchers}
        self._signs: dict[str, Sign] = {}
        self._explained: dict[str, datetime] = {}
        self._paused: list[Mapping[str, Any]] = []
        self._unlisted: dict[tuple[str, str], int] = {}
        self._unlisted_until = datetime.min.replace(tzinfo=UTC)
        self._pace = Pace(_SHARE)
        self._are_unexplained = False

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the rows of `perdure.alerts.conditions.stored_conditions_sql`."""
        now = datetime.now(UTC)
        self._explained = {id_: at for id_, at in self._explained.items() if now - at < _REMEMBERED_FOR}
        self._paused = []
        unlisted: dict[tuple[str, str], int] = {}
        for row in rows:
            if row["condition"] == Condition.PAUSED:
                self._paused.append(row)
                continue
            since = datetime.fromisoformat(row["since"])
            is_orchestration = row["type"] == "workflow" and row["handler"] == "run"
            # A reused workflow key has the same invocation ID.
            if (is_orchestration or row["service"] in FAILING_SERVICES) and self._explained.get(row["id"]) != since:
                self._signs[row["id"]] = Sign(row["service"], row.get("key") or "", is_orchestration, since)
            if row["number"] > MAX_LISTED:
                unlisted[row["service"], row["condition"]] = row["number"]
        if unlisted.items() - self._unlisted.items():
            self._unlisted_until = now + _RELEVANT_FOR
        self._unlisted = unlisted

    async def are_unexplained(self, admin: AdminClient) -> bool:
        """Return whether there may be an orphan, and forget the signs that are explained.

        Raises:
            EngineError: The engine does not answer, or refuses a query.
        """
        if self._pace.is_due:
            with self._pace.measured():
                self._are_unexplained = await self._explain(admin)
        return self._are_unexplained

    async def _explain(self, admin: AdminClient) -> bool:
        now = datetime.now(UTC)
        unexplained = now < self._unlisted_until or any(self._is_orphan(row, now) for row in self._paused)
        signs = list(islice(self._signs.items(), MAX_POINT_READS))
        evidence = await _read(admin, [sign for _, sign in signs])
        for id_, sign in signs:
            if evidence.explains(sign) or (not sign.is_orchestration and now - sign.since > _RELEVANT_FOR):
                self._explained[id_] = sign.since
                del self._signs[id_]
            elif not evidence.shows_progress(sign):
                unexplained = True
        return unexplained or len(self._signs) > MAX_POINT_READS

    def _is_orphan(self, paused: Mapping[str, Any], now: datetime) -> bool:
        age = now - datetime.fromisoformat(paused["since"])
        if paused["type"] == "workflow" and paused["handler"] == "run":
            return self._paused_limit is not None and age >= self._paused_limit
        is_roll_back = paused["handler"] == _ROLL_BACK and paused.get("caller") == ROLLBACK_DISPATCHER
        return age >= self._grace and (paused["service"] in self._resumed or is_roll_back)


@dataclass(frozen=True)
class _Evidence:
    """What explains signs.

    Args:
        names: Names that orchestrations recorded, by service and key.
        phases: Phases of rollbacks by execution.
        passes: Executions with an open pass.
    """

    names: Mapping[tuple[str, str], Collection[str]]
    phases: Mapping[str, str]
    passes: Collection[str]

    def executions(self, sign: Sign) -> list[str]:
        """Return the executions that a sign may have left without a rollback."""
        if not sign.is_orchestration:
            return [sign.key] if sign.service == EXECUTION_ROLLBACKS else []
        names = self.names.get((sign.service, sign.key), ())
        return [name.removeprefix(EXECUTION_PREFIX) for name in names if name.startswith(EXECUTION_PREFIX)]

    def explains(self, sign: Sign) -> bool:
        """Return whether the saga was closed or rolled back, or never recorded a step."""
        if executions := self.executions(sign):
            return all(self.phases.get(each, RollbackState.RUNNING) != RollbackState.RUNNING for each in executions)
        names = self.names.get((sign.service, sign.key), ())
        is_recorded = any(name.startswith(STEP_PREFIX) for name in names)
        return sign.is_orchestration and (not is_recorded or any(name.startswith(CLOSED_PREFIX) for name in names))

    def shows_progress(self, sign: Sign) -> bool:
        """Return whether the rollback has ended or will continue by itself."""
        executions = self.executions(sign)
        return bool(executions) and all(
            each in self.phases and (self.phases[each] != RollbackState.RUNNING or each in self.passes)
            for each in executions
        )


async def _read(admin: AdminClient, signs: Collection[Sign]) -> _Evidence:
    names: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for keys in _batches({sign.key for sign in signs if sign.is_orchestration}):
        for row in await admin.query(saga_names_sql(keys)):
            names[row["service_name"], row["service_key"]].append(row["key"])
    evidence = _Evidence(names, {}, ())
    executions = {each for sign in signs for each in evidence.executions(sign)}
    phases: dict[str, str] = {}
    for keys in _batches(executions):
        for row in await admin.query(phases_sql(keys)):
            phases[row["service_key"]] = row["phase"]
    passes: set[str] = set()
    for keys in _batches({each for each, phase in phases.items() if phase == RollbackState.RUNNING}):
        passes |= {row["key"] for row in await admin.query(open_passes_sql(keys))}
    return _Evidence(names, phases, passes)


def _batches(keys: Collection[str]) -> Iterator[list[str]]:
    ordered = sorted(keys)
    return (ordered[begin : begin + _BATCH] for begin in range(0, len(ordered), _BATCH))
