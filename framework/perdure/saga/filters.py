"""Filters of saga lists and bulk actions, and the facts that a list shows beside each saga."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from perdure._runtime.places import ValueCodec
from perdure.alerts.service import pause_reasons
from perdure.engine.admin import AdminClient, failure_message, sql_interval, sql_text
from perdure.errors import UnreadableValue
from perdure.observability.gauge_collector import decode_state_value
from perdure.saga.attributes import ATTRIBUTE_PREFIX, attribute_keys, attribute_name
from perdure.saga.policy import error_signature
from perdure.saga.queries import HISTORY, OPEN_PHASES, SagaList, SagaRow, list_sagas
from perdure.saga.retried import MAX_ERROR_LENGTH
from perdure.saga.schema import ORCHESTRATIONS_SQL, STEP_PREFIX, StepRecord, of_key_sql, sagas_sql
from perdure.saga.status import SagaPhase

T = TypeVar("T")

_text = TypeAdapter(str)

MAX_SAGAS: Final = 10_000
"""Largest number of sagas of a bulk action."""
UNREADABLE: Final = "(encrypted)"
"""Step or attribute that the given keys do not open."""
_BATCH: Final = 500  # keys or IDs per query
_REPR: Final = re.compile(r"(?P<kind>\w+)\((?P<quote>['\"])(?P<text>.*)(?P=quote)\)")


class SagaFilter(BaseModel):
    """Filter of sagas; all given fields must match.

    Args:
        phases: The phases.
        service: The service.
        older_than: The minimum time since the start.
        since: The maximum time since the start, which limits the history that is read. Open sagas match at any age if
            only open phases are wanted.
        error: The signature of the current or final error, see `perdure.saga.policy.error_signature`.
        attributes: Values of business attributes, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    phases: tuple[SagaPhase, ...] = OPEN_PHASES
    service: str | None = None
    older_than: timedelta | None = None
    since: timedelta = HISTORY
    error: str | None = None
    attributes: dict[str, str] = {}

    def conditions(self, codec: ValueCodec | None) -> list[str]:
        """Return the SQL conditions on the table ``sagas``, besides phase, service and error.

        Args:
            codec: Encryption of the journal; None if it is not encrypted.
        """
        conditions = []
        if self.older_than is not None:
            conditions.append(f"started_at < now() - {sql_interval(self.older_than)}")
        for name, value in self.attributes.items():
            keys = _texts(attribute_keys(name, value, codec))
            conditions.append(
                f"service || '/' || key in (select service_name || '/' || service_key from state where key in ({keys}))"
            )
        return conditions

    def __str__(self) -> str:
        """Return a description for audit entries and messages."""
        parts = [f"phase {' or '.join(self.phases)}"]
        if self.service is not None:
            parts.append(f"service {self.service}")
        if self.older_than is not None:
            parts.append(f"older than {self.older_than}")
        if self.error is not None:
            parts.append(f"error '{self.error}'")
        if not set(self.phases) <= set(OPEN_PHASES):
            parts.append(f"started within {self.since}")
        parts += [f"{name}={value}" for name, value in self.attributes.items()]
        return ", ".join(parts)


class SagaFacts(BaseModel):
    """Facts that a list shows beside a saga.

    Args:
        step: The last recorded step, which runs or failed; None before the first one.
        attempts: Attempts of the saga's failing invocation; None if none fails.
        error: The error of its failing invocation, or else its final error.
        failing: IDs of its failing invocations.
        attributes: Its business attributes.
    """

    step: str | None = None
    attempts: int | None = None
    error: str | None = None
    failing: list[str] = []
    attributes: dict[str, str] = {}


class ListedSaga(SagaRow, SagaFacts):
    """A saga of a list with its facts."""


class ListedSagas(BaseModel):
    """Sagas, oldest first.

    Args:
        items: The sagas, up to the limit.
        total: Number of matches.
    """

    items: list[ListedSaga]
    total: int


async def find_sagas(admin: AdminClient, wanted: SagaFilter, *, limit: int, codec: ValueCodec | None) -> SagaList:
    """Return the sagas that match a filter, oldest first.

    Args:
        admin: The engine.
        wanted: The filter.
        limit: Maximum number of items.
        codec: Encryption of the journal; None if it is not encrypted.

    Raises:
        EngineError: The engine does not answer.
    """
    # The signature is computed here, so an error is compared after the query.
    found = await list_sagas(
        admin,
        phases=wanted.phases,
        service=wanted.service,
        since=wanted.since,
        limit=limit if wanted.error is None else MAX_SAGAS,
        conditions=wanted.conditions(codec),
    )
    if wanted.error is None:
        return found
    failures = await _read_failures(admin, found.items)
    items = [saga for saga in found.items if error_signature(failures[saga.id].error or "") == wanted.error]
    return SagaList(items=items[:limit], total=len(items))


async def sagas_by_id(admin: AdminClient, ids: Sequence[str]) -> dict[str, SagaRow]:
    """Return the sagas with some invocation IDs, by ID.

    Raises:
        EngineError: The engine does not answer.
    """
    found: dict[str, SagaRow] = {}
    for some in batches(ids, _BATCH):
        found |= {saga.id: saga for saga in await _query(admin, sagas_sql(f"i.id in ({_texts(some)})"))}
    return found


async def sagas_by_name(admin: AdminClient, names: Sequence[str], service: str | None) -> list[SagaRow]:
    """Return the sagas with some keys or IDs ``{service}:{key}``; services may share a key.

    Raises:
        EngineError: The engine does not answer.
    """
    found: list[SagaRow] = []
    of = "true" if service is None else f"service = {sql_text(service)}"
    for some in batches(names, _BATCH):
        keys = sorted({*some, *(name.partition(":")[2] for name in some if ":" in name)})
        table = sagas_sql(f"i.target_service_key in ({_texts(keys)})", keys=keys)
        named = f"(key in ({_texts(some)}) or service || ':' || key in ({_texts(some)}))"
        found += await _query(admin, table, f"{named} and {of}")
    return found


async def open_keys(admin: AdminClient) -> list[str]:
    """Return the keys of sagas whose orchestration has not ended, at most `MAX_SAGAS`.

    Raises:
        EngineError: The engine does not answer.
    """
    rows = await admin.query(
        "select distinct i.target_service_key as key from sys_invocation_status i "
        f"where {ORCHESTRATIONS_SQL} and i.status != 'completed' limit {MAX_SAGAS}"
    )
    return [row["key"] for row in rows]


async def _query(admin: AdminClient, table: str, condition: str = "true") -> list[SagaRow]:
    rows = await admin.query(
        f"{table} select id, service, key, phase, failure, started_at, ended_at from sagas where {condition}"
    )
    return [SagaRow.model_validate(row) for row in rows]


async def list_with_facts(
    admin: AdminClient, wanted: SagaFilter, *, limit: int, codec: ValueCodec | None
) -> ListedSagas:
    """Return the sagas that match a filter with the facts of each; see `find_sagas` and `read_facts`.

    Raises:
        EngineError: The engine does not answer.
    """
    found = await find_sagas(admin, wanted, limit=limit, codec=codec)
    facts = await read_facts(admin, found.items, codec)
    items = [ListedSaga(**saga.model_dump(), **facts[saga.id].model_dump()) for saga in found.items]
    return ListedSagas(items=items, total=found.total)


async def read_facts(admin: AdminClient, sagas: Sequence[SagaRow], codec: ValueCodec | None) -> dict[str, SagaFacts]:
    """Return the facts of some sagas, by invocation.

    The queries read the state of these sagas and the invocations that fail now, not the history. A value that is
    encrypted with another key is `UNREADABLE`.

    Raises:
        EngineError: The engine does not answer.
    """
    facts = await _read_failures(admin, sagas)
    by_key = {(saga.service, saga.key): facts[saga.id] for saga in sagas}
    for keys in batches(sorted({saga.key for saga in sagas}), _BATCH):
        for row in await admin.query(_state_sql(keys)):
            of = by_key.get((row["service_name"], row["service_key"]))
            if of is None:
                continue
            is_attribute = row["key"].startswith(ATTRIBUTE_PREFIX)
            try:
                value = decode_state_value(row, codec)
                text = _text.validate_json(value) if is_attribute else StepRecord.model_validate_json(value).step
            except (UnreadableValue, ValidationError):
                text = UNREADABLE  # the list must be available without the keys
            if is_attribute:
                of.attributes[attribute_name(row["key"])] = text
            else:
                of.step = text
    return facts


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in order, at most ``size`` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


async def _read_failures(admin: AdminClient, sagas: Sequence[SagaRow]) -> dict[str, SagaFacts]:
    """Return attempts and errors of some sagas, by invocation."""
    failing: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    # The engine holds the failing invocations in memory. The tables of all invocations are read only if there are some.
    if await admin.query("select id from sys_invocation_state where last_failure is not null limit 1"):
        for row in await admin.query(
            "select id, invoked_by_id, retry_count, last_failure from sys_invocation where last_failure is not null "
            f"and status not in ('completed', 'paused') limit {MAX_SAGAS}"
        ):
            for saga_or_call in {row["id"], row.get("invoked_by_id") or row["id"]}:
                failing[saga_or_call].append(row)
    paused: dict[str, str] = {}
    for ids in batches([saga.id for saga in sagas if saga.phase is SagaPhase.PAUSED], _BATCH):
        paused |= await pause_reasons(admin, ids)
    facts = {}
    for saga in sagas:
        rows = failing.get(saga.id, [])
        current = failure_message(rows[-1]["last_failure"]) if rows else paused.get(saga.id) or saga.failure
        facts[saga.id] = SagaFacts(
            attempts=max((row["retry_count"] for row in rows), default=None),
            error=None if current is None else _plain(current),
            failing=[row["id"] for row in rows],
        )
    return facts


def _plain(error: str) -> str:
    """Return an error in one line. The engine stores the ``repr`` of an exception, whose quotes would hide its text."""
    line = " ".join(error.split())
    found = _REPR.fullmatch(line)
    return (line if found is None else f"{found['kind']}: {found['text']}")[:MAX_ERROR_LENGTH]


def _state_sql(keys: Sequence[str]) -> str:
    """Return the query for the attributes and the last step of the sagas with some keys."""
    columns = "s.service_name as service_name, s.service_key as service_key, s.key as key"
    return (
        f"select {columns}, encode(s.value, 'hex') as value from state s left join ("
        f"select service_name, service_key, max(key) as last from state where {of_key_sql(*keys)} "
        f"and key like '{STEP_PREFIX}%' group by service_name, service_key) l "
        "on l.service_name = s.service_name and l.service_key = s.service_key "
        f"where {of_key_sql(*keys, column='s.service_key')} and (s.key = l.last or s.key like '{ATTRIBUTE_PREFIX}%')"
    )


def _texts(values: Iterable[str]) -> str:
    return ", ".join(map(sql_text, values)) or "null"
