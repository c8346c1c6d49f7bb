"""The sentinel: finds sagas that nobody looks after any more, and hands them to `Rollbacks`.

A kill delivers nothing to a handler, and a paused invocation waits for ever; both leave a saga half done and silent.
The engine knows them, so the sentinel asks it, in SQL, at an interval:

- an orchestration that ended without closing its saga (killed, by a person or by its retry policy);
- one that asked for its rollback, which then never began, since what was to begin it was killed;
- one that is paused for longer than a limit; it is killed first, so that it can't go on beside its rollback;
- a rollback that is open, but for which nothing is running or scheduled (killed, too);
- an invocation of `Rollbacks`, its relay or the index of dead letters that is paused; it is resumed.

Looking is a plain query by a process; only when it finds something does it call `sweep`, a durable handler that asks
again by itself. So anybody may call `sweep`: it does nothing but what has to be done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import restate
from pydantic import BaseModel
from restate import JournalValueCodec
from restate.serde import BytesSerde

from perdure._sdk import is_replaying
from perdure.admin import AdminClient, sql_text
from perdure.binding import Definition, handler
from perdure.clients import ObjectClient, ServiceClient
from perdure.errors import (
    Cancelled,
    ConfigurationError,
    Conflict,
    EngineError,
    IngressError,
    PerdureTerminalError,
    TerminalError,
)
from perdure.ingress import IngressClient
from perdure.observability.logging import get_logger
from perdure.observability.metrics import SENTINEL_FINDS
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.alerts import KEY as ALERTS_KEY
from perdure.saga.alerts import Alert, Alerts, News, Trouble, look_target, tell_target
from perdure.saga.census import count_sagas, saga_census
from perdure.saga.messages import UndoRequest, roll_back_handler
from perdure.saga.relay import Start, start
from perdure.saga.rollback import resume
from perdure.security.keys import PrivateKey
from perdure.state import State
from perdure.targets import Target
from perdure.waiting import is_own_cancel

log = get_logger("perdure.saga.sentinel")

Kind = Literal["lost", "unopened", "paused", "stalled", "halted"]

ANSWER_WITHIN = timedelta(seconds=5)
"""How long a sweep waits for a service to take its saga back; one that is down must not hold up the others' sagas."""

_KEY = "all"
_SEEN = "seen/"


@dataclass(frozen=True)
class SentinelConfig:
    """Where the sentinel looks, and when it acts.

    Args:
        admin_url: The engine's admin API.
        ingress_url: The engine's ingress.
        interval: How often it looks.
        grace: How long an ended orchestration is left alone: a thread of its last step may still commit.
        paused_limit: How long an orchestration may be paused before it is killed and rolled back; None for ever.
        webhook_url: Told of trouble and of each find with a POST of JSON, see `perdure.saga.alerts`; nobody when None.
        webhook_key: Signs what the webhook is told; unsigned when None.
        alert_retries: After how many failed attempts an invocation is trouble.
        codec: What the services' journal is encrypted with; None when it is in clear.

    Raises:
        ConfigurationError: An interval that is not positive.
    """

    admin_url: str
    ingress_url: str
    interval: timedelta = timedelta(seconds=5)
    grace: timedelta = timedelta(seconds=5)
    paused_limit: timedelta | None = timedelta(hours=1)
    webhook_url: str | None = None
    webhook_key: PrivateKey | None = None
    alert_retries: int = 5
    codec: JournalValueCodec | None = None

    def __post_init__(self) -> None:
        if self.interval <= timedelta(0):
            raise ConfigurationError(f"SentinelConfig.interval must be positive; got {self.interval}")


class Find(BaseModel):
    """What the sentinel found.

    Args:
        kind: A lost orchestration, one whose rollback never began, a paused one, a rollback that stands still, or one
            whose pass is halted (paused).
        id: The invocation, or the saga of a rollback.
        service: The service.
        key: Its key.
        reason: What the engine says of it.
    """

    kind: Kind
    id: str
    service: str
    key: str
    reason: str = ""


class SweepReport(BaseModel):
    """What a sweep did.

    Args:
        acted_on: What was handed over or set going again.
        failed: What could not be, each with why.
    """

    acted_on: list[Find] = []
    failed: dict[str, str] = {}


def _no_rollback(saga_id: str) -> str:
    """Return the condition that a saga has no rollback.

    Args:
        saga_id: The saga's id in SQL, where the orchestration's own word for it is encrypted and can't be read.
    """
    return f"""not exists (select 1 from state r where r.service_name = 'Rollbacks' and r.key = 'head'
              and r.service_key = coalesce(btrim(s.value_utf8, '"'), {saga_id}))"""


def find_sql(config: SentinelConfig) -> dict[Kind, str]:
    """Return the queries that find what nobody looks after, by kind.

    Args:
        config: Grace and limits.
    """
    open_saga = """
      exists (select 1 from state s where s.service_name = i.target_service_name
              and s.service_key = i.target_service_key and s.key like 'saga/0%')
      and not exists (select 1 from state s where s.service_name = i.target_service_name
              and s.service_key = i.target_service_key and s.key = 'saga/closed')"""
    columns = "i.id as id, i.target_service_name as service, i.target_service_key as key"
    grace = _sql_interval(config.grace)
    queries: dict[Kind, str] = {
        "lost": f"""
      select {columns}, i.completion_failure as reason from sys_invocation_status i
      where i.target_service_ty = 'workflow' and i.target_handler_name = 'run' and i.status = 'completed'
      and i.completion_result = 'failure' and i.modified_at < now() - {grace} and {open_saga}""",
        "unopened": f"""
      select {columns}, 'its rollback never began' as reason from sys_invocation_status i
      join state s on s.service_name = i.target_service_name and s.service_key = i.target_service_key
      where i.target_service_ty = 'workflow' and i.target_handler_name = 'run' and i.status = 'completed'
      and i.modified_at < now() - {grace} and s.key = 'saga/handed'
      and {_no_rollback("i.target_service_key")}
      and {_no_rollback("i.target_service_name || ':' || i.target_service_key")}""",
        "stalled": f"""
      select s.service_key as id, s.service_name as service, s.service_key as key, 'nothing is running' as reason
      from state s where s.service_name = 'Rollbacks' and s.key = 'open'
      and not exists (select 1 from sys_invocation_status i where i.target_service_name = 'Rollbacks'
              and i.target_service_key = s.service_key and i.target_handler_name in ('run', 'resume')
              and (i.status != 'completed' or i.modified_at >= now() - {grace}))""",
        "halted": f"""
      select i.id as id, i.target_service_name as service, coalesce(i.target_service_key, '') as key,
      i.target_handler_name || ' is paused' as reason from sys_invocation_status i
      where i.target_service_name in ('Rollbacks', 'RollbackRelay', 'DeadLetterIndex') and i.status = 'paused'
      and i.modified_at < now() - {grace}""",
    }
    if config.paused_limit is not None:
        queries["paused"] = f"""
      select {columns}, 'paused' as reason from sys_invocation_status i
      where i.target_service_ty = 'workflow' and i.target_handler_name = 'run' and i.status = 'paused'
      and i.modified_at < now() - {_sql_interval(config.paused_limit)} and {open_saga}"""
    return queries


def _sql_interval(duration: timedelta) -> str:
    return f"interval '{int(duration.total_seconds() * 1000)} milliseconds'"


async def look(admin: AdminClient, config: SentinelConfig) -> list[Find]:
    """Ask the engine what nobody looks after.

    Args:
        admin: The engine.
        config: Grace and limits.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    return [
        Find(kind=kind, id=row["id"], service=row["service"], key=row["key"], reason=row["reason"] or "")
        for kind, sql in find_sql(config).items()
        for row in await admin.query(sql)
    ]


class _SilentError(PerdureTerminalError):
    """A service did not answer in time; what it was asked is done as soon as it is up again."""


async def _before(
    wanted: restate.RestateDurableFuture[Any], late: restate.RestateDurableFuture[None], find: Find
) -> None:
    try:
        done, _ = await restate.wait_completed(wanted, late)
    except TerminalError as error:
        raise Cancelled("cancelled during a sweep") from error
    if wanted not in done:
        raise _SilentError(f"{find.service} does not answer; its saga is rolled back as soon as it does: start it")


class Sentinel:
    """Watches one engine's sagas.

    Args:
        config: Where to look, and when to act.
    """

    def __init__(self, config: SentinelConfig) -> None:
        self._config = config
        self._definition = restate.VirtualObject(
            "Sentinel", description="Hands sagas to Rollbacks that nobody looks after any more."
        )
        handler(self._definition, "exclusive", ingress_private=False)(self.sweep)
        self._census = saga_census()
        self._alerts = Alerts(
            config.admin_url,
            webhook_url=config.webhook_url,
            webhook_key=config.webhook_key,
            retries=config.alert_retries,
        )
        self._sweep: Target[None, SweepReport] = Target("Sentinel", "sweep", type(None), SweepReport)

    def definitions(self) -> list[Definition]:
        """Return what to serve."""
        return [self._definition, *self._alerts.definitions()]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at the interval, as long as the context is entered."""
        self._census.publish()
        task = asyncio.create_task(self._watch(), name="sentinel")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        known: set[str] = set()
        told: frozenset[str] = frozenset()
        reachable = True
        client = IngressClient(self._config.ingress_url, codec=self._config.codec)
        async with AdminClient(self._config.admin_url) as admin, client as ingress:
            while True:
                await asyncio.sleep(self._config.interval.total_seconds())
                try:
                    self._census.take(await count_sagas(admin, self._config.codec))
                    found = {find.id for find in await look(admin, self._config)}
                    if found - known:
                        report = await ingress.call(self._sweep, key=_KEY)
                        found -= set(report.failed)  # looked at again the next time
                    known = found
                    seen = await self._alerts.seen(admin)
                    if seen != told:
                        await ingress.call(look_target, key=ALERTS_KEY)
                    told = seen
                except Exception as error:
                    self._census.forget()
                    if not isinstance(error, EngineError | IngressError):
                        log.exception("sentinel.broken")  # and go on: nobody else looks
                    elif reachable:
                        log.warning("sentinel.blind", error=str(error), again_in=self._config.interval.total_seconds())
                    reachable = False
                else:
                    if not reachable:
                        log.info("sentinel.sees_again")
                    reachable = True

    async def sweep(self, ctx: restate.ObjectContext) -> SweepReport:
        """Hand over what nobody looks after, each find once."""
        found = await run_with_retry(ctx, RunConfig("look", max_retries=5), self._look)
        seen = {name.removeprefix(_SEEN) for name in await ctx.state_keys() if name.startswith(_SEEN)}
        for gone in sorted(seen - {find.id for find in found}):
            await State(ctx, _SEEN + gone, bool).clear()
        report = SweepReport()
        silent: set[str] = set()
        for find in found:
            if find.id in seen:
                continue
            try:
                if find.service in silent:
                    raise _SilentError(f"{find.service} does not answer")
                await self._act(ctx, find)
            except TerminalError as error:
                if is_own_cancel(error):
                    raise
                if isinstance(error, _SilentError):
                    silent.add(find.service)
                log.warning("sentinel.failed", kind=find.kind, service=find.service, key=find.key, error=error.message)
                report.failed[find.id] = error.message
                continue
            report.acted_on.append(find)
            seen.add(find.id)
            if find.kind in ("lost", "unopened", "paused"):  # a rollback that is set going again may stall again
                await State(ctx, _SEEN + find.id, bool).set(True)
            if not is_replaying(ctx):
                SENTINEL_FINDS.count(service=find.service, kind=find.kind)
            log.warning("sentinel.acted", kind=find.kind, service=find.service, key=find.key, reason=find.reason)
            await self._tell(ctx, find)
        return report

    async def _act(self, ctx: restate.ObjectContext, find: Find) -> None:
        if find.kind == "stalled":
            await ObjectClient(ctx, resume, find.key).send()
            return
        if find.kind == "halted":
            await run_with_retry(ctx, f"resume {find.id}", self._resume_paused, find.id)
            return
        if find.kind == "paused" and not await run_with_retry(ctx, f"kill {find.id}", self._kill_paused, find.id):
            # It was resumed or ended since, perhaps well; if it is lost, it is found as that.
            raise Conflict("not paused any more")
        reason = f"the orchestration was lost: {find.kind}: {find.reason}"[:2000]
        # Through the relay, since a call to a service that was removed is tried for ever; and under one key, since a
        # service that is down is asked again and again.
        undo = roll_back_handler(find.service, find.key)
        request = Start(
            compensation=undo,
            payload=UndoRequest(reason=reason, wait=False).model_dump(mode="json"),
            idempotency_key=f"sentinel/{find.id}",
        )
        late = ctx.sleep(ANSWER_WITHIN, f"{find.service} answers")
        started = ServiceClient(ctx, start).call_async(request)
        await _before(started.future, late, find)
        try:
            invocation_id = await started
        except TerminalError as error:
            raise _SilentError(f"{undo} could not be called: {error.message}") from error
        undone = ctx.attach_invocation(invocation_id, serde=BytesSerde())
        await _before(undone, late, find)
        await undone

    async def _look(self) -> list[Find]:
        async with AdminClient(self._config.admin_url) as admin:
            return await look(admin, self._config)

    async def _resume_paused(self, invocation_id: str) -> None:
        async with AdminClient(self._config.admin_url) as admin:
            try:
                await admin.act(invocation_id, "resume")
            except EngineError as error:
                if error.status_code not in (404, 409):  # somebody else resumed or ended it
                    raise

    async def _kill_paused(self, invocation_id: str) -> bool:
        is_paused = "select id from sys_invocation_status where status = 'paused' and id = " + sql_text(invocation_id)
        async with AdminClient(self._config.admin_url) as admin:
            if not await admin.query(is_paused):
                return False
            try:
                await admin.act(invocation_id, "kill")
            except EngineError as error:
                if error.status_code not in (404, 409):
                    raise
                return False
            return True

    async def _tell(self, ctx: restate.ObjectContext, find: Find) -> None:
        trouble = Trouble.HANDED_OVER
        alert = Alert(
            id=f"{trouble}/{find.id}",
            trouble=trouble,
            invocation=find.id,
            service=find.service,
            key=find.key,
            reason=f"{find.kind}: {find.reason}",
        )
        await ServiceClient(ctx, tell_target).send(News(event="sentinel.acted", alert=alert))
