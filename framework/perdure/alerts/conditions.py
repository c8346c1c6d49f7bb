"""What is wrong with invocations now, and what of it is news.

The engine knows which invocations are paused, killed, or fail again and again; it is asked in SQL. What is news is a
comparison of that with what was known before, without any engine. A person can read a few pieces of news about one
service, not hundreds: so when more than `FEW` of its invocations have the same trouble, the rest is told in one piece
(an alert about many), and again only when it has become ten times as many. Prometheus' Alertmanager groups alike.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict

from perdure.engine.admin import AdminClient, failure_message, sql_text

__all__ = [
    "FEW",
    "RETRIES_OF_STUCK",
    "WINDOW",
    "Alert",
    "Changes",
    "News",
    "Snapshot",
    "Trouble",
    "compare",
    "failing_sql",
    "many_id",
    "survey",
    "trouble_sql",
    "why_paused",
    "with_reasons",
]

FEW: Final = 5
"""How many invocations of one service with the same trouble are told one by one."""
WINDOW: Final = 500
"""How many of them are known by name; of the rest, how many they are."""

RETRIES_OF_STUCK: Final = 2
"""How many failed attempts make an invocation one that is stuck, for who looks; who is woken is woken later."""

_GROWN: Final = 10
_LONGEST_REASON: Final = 500


class Trouble(StrEnum):
    """What is wrong with an invocation."""

    PAUSED = "paused"
    BACKING_OFF = "backing_off"
    KILLED = "killed"
    HANDED_OVER = "handed_over"
    """Nobody looked after its saga any more, and the reconciler acted."""


class Alert(BaseModel):
    """An alert, about one invocation or about many.

    Args:
        id: What it is about: ``{trouble}/{invocation}``, or ``{trouble}/many/{service}``.
        trouble: What is wrong.
        invocation: The invocation; empty when it is about many.
        service: Its service.
        handler: Its handler.
        key: Its key; empty for a plain service.
        reason: What the engine says of it; of many, of the first one.
        since: Since when: when the engine last saw it get on. Of many, and of what was handed over: when that was seen.
        over: When it was seen no more; None as long as it lasts.
        number: How many invocations it is about.
        some: A few of many: their ids.
        told: Whether it was told by itself; if not, as one of many.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    trouble: Trouble
    invocation: str = ""
    service: str
    handler: str = ""
    key: str = ""
    reason: str = ""
    since: AwareDatetime | None = None
    over: AwareDatetime | None = None
    number: int = 1
    some: list[str] = []
    told: bool = True

    @classmethod
    def of_many(cls, some: Iterable[Alert], number: int) -> Alert:
        """Return an alert about many invocations of one service.

        Args:
            some: The first of them, at least one.
            number: How many they are.
        """
        few = list(some)[:FEW]
        return Alert(
            id=many_id(few[0]),
            trouble=few[0].trouble,
            service=few[0].service,
            reason=few[0].reason,
            number=number,
            some=[each.invocation for each in few],
        )


class News(BaseModel):
    """What the webhook is told.

    Args:
        event: ``alert.raised`` or ``alert.over``; ``reconciler.acted`` for what the reconciler did.
        alert: The alert.
    """

    event: str
    alert: Alert


class Snapshot(BaseModel):
    """What is wrong now.

    Args:
        alerts: Of each service and trouble the oldest, at most `WINDOW`.
        more: How many there are beyond those, by the id of the alert about many.
    """

    alerts: list[Alert] = []
    more: dict[str, int] = {}

    def marks(self) -> frozenset[str]:
        """Return what changes when anything does."""
        return frozenset(each.id for each in self.alerts) | {f"{name}={number}" for name, number in self.more.items()}


def many_id(alert: Alert) -> str:
    """Return the id of the alert about many that are like one."""
    return f"{alert.trouble}/many/{alert.service}"


def failing_sql(retries: int) -> str:
    """Return the condition that a row of ``sys_invocation`` fails again and again.

    While it is being tried it is running, and its trouble isn't over: that would be told at each attempt. It is over
    when it got on, and then its last failure is gone.

    Args:
        retries: How many failed attempts that are.
    """
    return f"(status != 'completed' and retry_count >= {retries} and last_failure is not null)"


def trouble_sql(retries: int, killed_within: timedelta, silent: str) -> str:
    """Return the query for everything that is wrong now.

    Args:
        retries: How many failed attempts are trouble.
        killed_within: How long a kill is news.
        silent: A service that is left out.
    """
    recent = f"now() - interval '{int(killed_within.total_seconds())} seconds'"
    return f"""
      select * from (
        select *, count(*) over (partition by service, trouble) as number,
          row_number() over (partition by service, trouble order by since, id) as place
        from (
          select id, target_service_name as service, target_handler_name as handler, target_service_key as key,
            case status when 'paused' then 'paused' when 'completed' then 'killed' else 'backing_off' end as trouble,
            substr(coalesce(last_failure, completion_failure, ''), 1, {_LONGEST_REASON}) as reason, modified_at as since
          from sys_invocation
          where target_service_name != {sql_text(silent)} and (status = 'paused'
            or {failing_sql(retries)}
            or (status = 'completed' and completion_failure = '[409] killed' and modified_at > {recent}))))
      where place <= {WINDOW}"""


async def survey(admin: AdminClient, retries: int, killed_within: timedelta, *, silent: str) -> Snapshot:
    """Ask the engine what is wrong now.

    Args:
        admin: The engine.
        retries: How many failed attempts are trouble.
        killed_within: How long a kill is news.
        silent: A service that is left out.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    found = Snapshot()
    for row in await admin.query(trouble_sql(retries, killed_within, silent)):
        alert = _alert(row)
        found.alerts.append(alert)
        if row["number"] > WINDOW:
            found.more[many_id(alert)] = row["number"] - WINDOW
    return found


async def why_paused(admin: AdminClient, ids: Collection[str]) -> dict[str, str]:
    """Return why invocations were paused, which is an event of their journals: by their ids, empty where by hand.

    Args:
        admin: The engine.
        ids: Invocations that are paused.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    if not ids:
        return {}
    rows = await admin.query(
        "select id, event_json from sys_journal_events where event_type = 'Paused' "
        f"and id in ({', '.join(map(sql_text, ids))}) order by appended_at"
    )
    return {row["id"]: _why_paused(row["event_json"]) for row in rows}


async def with_reasons(admin: AdminClient, found: Snapshot) -> Snapshot:
    """Add why invocations were paused.

    Args:
        admin: The engine.
        found: What is wrong.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    why = await why_paused(admin, [each.invocation for each in found.alerts if each.trouble is Trouble.PAUSED])
    alerts = [each.model_copy(update={"reason": why.get(each.invocation) or each.reason}) for each in found.alerts]
    return found.model_copy(update={"alerts": alerts})


def _alert(row: Mapping[str, Any]) -> Alert:
    return Alert(
        id=f"{row['trouble']}/{row['id']}",
        trouble=Trouble(row["trouble"]),
        invocation=row["id"],
        service=row["service"],
        handler=row.get("handler") or "",
        key=row.get("key") or "",  # a column that is null is left out
        reason=_first_line(row.get("reason")),
        since=row.get("since"),
    )


def _why_paused(event: str) -> str:
    found = json.loads(event)
    failure = found.get("Paused", found).get("last_failure") or {}
    command = failure.get("related_command_name")
    why = _first_line(failure_message(failure.get("error_message")))
    return f"{why} (in {command})" if why and command else why


def _first_line(text: object) -> str:
    return str(text or "").partition("\n")[0][:_LONGEST_REASON]


@dataclass(frozen=True)
class Changes:
    """What is to be remembered and told.

    Args:
        news: What is to be told, in this order.
        alerts: What is to be remembered of invocations; all that changes.
        many: What is to be remembered of many, by its id; None what is to be forgotten.
    """

    news: list[News]
    alerts: list[Alert]
    many: dict[str, Alert | None]


def compare(known: Mapping[str, Alert], many: Mapping[str, Alert], found: Snapshot, now: datetime) -> Changes:
    """Return what is news.

    Args:
        known: What was known of invocations, by the alert's id; what is over, too.
        many: What was told of many, and lasts.
        found: What is wrong now.
        now: The time.
    """
    changes = Changes([], [], {})
    lasting = {each.id for each in found.alerts}
    alike: defaultdict[str, list[Alert]] = defaultdict(list)
    for each in sorted(found.alerts, key=lambda alert: alert.id):
        alike[many_id(each)].append(each)
    for name, alerts in alike.items():
        before = {each.id: known[each.id] for each in alerts if each.id in known and _is_same(each, known[each.id])}
        alone = sum(each.told for each in before.values())
        fresh = [each for each in alerts if each.id not in before]
        number = len(alerts) + found.more.get(name, 0)
        is_few = name not in many and number <= FEW
        for each in fresh:
            _take(changes, each, known.get(each.id), by_itself=is_few, now=now)
        rest = [each for each in alerts if each.id not in before or not before[each.id].told]
        if not is_few and number > alone and (name not in many or number - alone >= many[name].number * _GROWN):
            since = many[name].since if name in many else now
            alert = Alert.of_many(rest or alerts, number - alone).model_copy(update={"since": since})
            changes.many[name] = alert
            changes.news.append(News(event="alert.raised", alert=alert))
        if name in many and number == alone:
            _end(changes, many[name], now)
    for name, alert in many.items():
        if name not in alike:
            _end(changes, alert, now)
    for alert in known.values():
        if alert.over is None and alert.id not in lasting:
            changes.alerts.append(alert.model_copy(update={"over": now}))
            if alert.told:
                _tell_end(changes, alert, now)
    return changes


def _take(changes: Changes, fresh: Alert, before: Alert | None, *, by_itself: bool, now: datetime) -> None:
    """Remember what is new; tell of it, if it is told by itself."""
    alert = fresh.model_copy(update={"told": by_itself, "since": _since(fresh, before, now)})
    changes.alerts.append(alert)
    if by_itself:
        changes.news.append(News(event="alert.raised", alert=alert))
    elif before is not None and before.over is None and before.told:
        _tell_end(changes, before, now)  # killed before, and again: now it is one of many


def _is_same(alert: Alert, before: Alert) -> bool:
    """Tell whether a trouble goes on. A kill is over at once; a workflow's key, and so its id, may be used again."""
    killed_again = alert.trouble is Trouble.KILLED and alert.since and before.since and alert.since > before.since
    return before.over is None and not killed_again


def _since(alert: Alert, before: Alert | None, now: datetime) -> datetime:
    """Return since when it lasts; what was over has begun anew, even if the engine has not seen it move."""
    ended = None if before is None else before.over
    return now if alert.since is None or (ended is not None and alert.since <= ended) else alert.since


def _end(changes: Changes, alert: Alert, now: datetime) -> None:
    changes.many[alert.id] = None
    _tell_end(changes, alert, now)


def _tell_end(changes: Changes, alert: Alert, now: datetime) -> None:
    changes.news.append(News(event="alert.over", alert=alert.model_copy(update={"over": now})))
