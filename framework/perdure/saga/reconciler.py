"""The reconciler: finds sagas that nobody looks after any more, and hands them to `Rollbacks`.

A kill delivers nothing to a handler, and a paused invocation waits for ever; both leave a saga half done and silent.
The engine knows them, so the reconciler asks it, in SQL, at an interval:

- an orchestration that ended without closing its saga (killed, by a person or by its retry policy);
- one that asked for its rollback, which then never began, since what was to begin it was killed;
- one that is paused for longer than a limit; it is killed, so that it can't go on beside its rollback, and then lost;
- a rollback that is open, but for which nothing is running or scheduled (killed, too);
- an invocation of `Rollbacks`, its dispatcher, the index of dead letters, the dispatcher of alerts or a saga's
``roll_back`` that
  is paused; it is resumed.

No saga is handed over while something that its orchestration called still runs, since an undo could be overtaken by
it: that is cancelled, and its end is waited for, one look after the other. A kill by the engine's retry policy leaves
calls running; a kill by a person ends them, too, but a thread of theirs may still commit, so what has just ended is
left alone for a while.

Looking is a plain query by a process; only when it finds something does it call `sweep`, a durable handler that asks
again by itself. So anybody may call `sweep`: it does nothing but what has to be done.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Set
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import restate
from pydantic import BaseModel

from perdure._runtime.sdk import is_replaying
from perdure._runtime.waiting import is_own_cancel
from perdure.alerts.conditions import FEW, Alert, News, Trouble
from perdure.alerts.service import BEAT, Alerts, look_target, send_news
from perdure.alerts.service import KEY as ALERTS_KEY
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.engine.admin import AdminClient, InvocationAction, sql_text
from perdure.engine.ingress import IngressClient
from perdure.engine.polling import BACKGROUND_CALL_RETRIES, Watch
from perdure.errors import (
    Conflict,
    EngineError,
    TerminalError,
)
from perdure.handlers import Definition, handler
from perdure.observability.logging import get_logger
from perdure.observability.metrics import RECONCILER_REPAIRS
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.gauges import count_sagas, saga_gauges
from perdure.saga.messages import roll_back_handler
from perdure.saga.orphans import HANDED_OVER, OrphanedSaga, look
from perdure.saga.reconciler_config import SagaReconcilerConfig
from perdure.saga.recovery import LeftBehind, SilentService, left_behind, salvage
from perdure.saga.rollback import resume
from perdure.state import State
from perdure.targets import Target

log = get_logger("perdure.saga.reconciler")

_KEY = "all"
_SEEN = "seen/"
_TRIED = "tried/"
_KILLED = "killed/"
_CANCELLED = "cancelled/"
_KILL_TAKES = timedelta(minutes=1)
_MOST_AT_ONCE = 500


class ScanReport(BaseModel):
    """What a sweep did.

    Args:
        acted_on: What was handed over or set going again.
        failed: What could not be, each with why.
        left: How much was left to the next sweep, so that none grows too long to be replayed after a crash.
    """

    acted_on: list[OrphanedSaga] = []
    failed: dict[str, str] = {}
    left: int = 0


class SagaReconciler:
    """Watches one engine's sagas.

    Args:
        config: Where to look, and when to act.
    """

    def __init__(self, config: SagaReconcilerConfig) -> None:
        self._config = config
        self._definition = restate.VirtualObject(
            "SagaReconciler",
            description="Hands sagas to Rollbacks that nobody looks after any more.",
            invocation_retry_policy=BACKGROUND_CALL_RETRIES,
        )
        handler(self._definition, "exclusive", ingress_private=False)(self.sweep)
        self._alerts = Alerts(
            config.admin_url,
            webhook_url=config.webhook_url,
            webhook_key=config.webhook_key,
            retries=config.alert_retries,
            beat=max(BEAT, config.interval),
        )
        self._sweep: Target[None, ScanReport] = Target("SagaReconciler", "sweep", None, ScanReport)
        self._known: set[str] = set()
        self._told: frozenset[str] = frozenset()
        self._beat_at = 0.0
        self._telling: asyncio.Task[None] | None = None

    def definitions(self) -> list[Definition]:
        """Return what to serve."""
        return [self._definition, *self._alerts.definitions()]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at once, and then at the interval, as long as the context is entered."""
        config = self._config
        self._known, self._told, self._beat_at = set(), frozenset(), 0.0
        watch = Watch(
            "reconciler",
            log,
            config.admin_url,
            config.ingress_url,
            config.interval,
            config.codec,
            saga_gauges(),
            count_sagas,
            self._look_and_act,
        )
        try:
            async with watch.watching():
                yield
        finally:
            if (telling := self._telling) is not None:
                self._telling = None
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)

    async def _look_and_act(self, admin: AdminClient, ingress: IngressClient) -> None:
        # Beside each other: either may wait for services that don't answer, or fail until other code is deployed. The
        # telling may do so over several looks, and the sagas are handed over all the same.
        telling = self._telling = self._telling or asyncio.create_task(self._tell(admin, ingress))
        tried = list(await asyncio.gather(self._hand_over(admin, ingress), return_exceptions=True))
        if (await asyncio.wait([telling], timeout=self._config.interval.total_seconds()))[0]:
            self._telling = None
            tried += await asyncio.gather(telling, return_exceptions=True)
        failures = [each for each in tried if each is not None]
        if failures:
            raise failures[0] from (failures[1] if len(failures) > 1 else None)

    async def _tell(self, admin: AdminClient, ingress: IngressClient) -> None:
        seen = await self._alerts.seen(admin)
        if seen != self._told or time.monotonic() >= self._beat_at:
            await ingress.call(look_target, key=ALERTS_KEY)
            self._beat_at = time.monotonic() + self._alerts.beat.total_seconds()
        self._told = seen

    async def _hand_over(self, admin: AdminClient, ingress: IngressClient) -> None:
        found = await look(admin, self._config)
        marks = {find.mark for find in found}
        if marks - self._known:
            report = await ingress.call(self._sweep, key=_KEY)
            marks = {find.mark for find in found if find.kind in HANDED_OVER}
            marks -= set(report.failed)  # looked at again the next time
            if report.left:
                marks.clear()
        self._known = marks

    async def sweep(self, ctx: restate.ObjectContext) -> ScanReport:
        """Hand over what nobody looks after, each find once."""
        found = await run_with_retry(ctx, RunConfig("look", max_retries=5), self._look)
        now = await Time(ctx).now()
        names = await ctx.state_keys()
        marks = {find.mark for find in found}
        await self._forget(ctx, sorted(name for name in names if name.partition("/")[2] not in marks), now)
        report = ScanReport()
        silent: set[str] = set()
        told: defaultdict[str, list[Alert]] = defaultdict(list)
        acts = 0
        for find in _fresh(found, set(names)):
            if acts == _MOST_AT_ONCE:
                report.left += 1
                continue
            try:
                if find.service in silent and find.kind in HANDED_OVER:
                    raise SilentService(f"{find.service} does not answer")
                acts += 1
                reason = await self._act(ctx, find, now)
            except TerminalError as error:
                if is_own_cancel(error):
                    raise
                if isinstance(error, SilentService):
                    silent.add(find.service)
                why = error.message.partition("\nTraceback")[0]
                log.warning("reconciler.failed", kind=find.kind, service=find.service, key=find.key, error=why)
                report.failed[find.mark] = why
                continue
            report.acted_on.append(find)
            if find.kind in HANDED_OVER:
                await State(ctx, _SEEN + find.mark, bool).set(True)
            if not is_replaying(ctx):
                RECONCILER_REPAIRS.count(service=find.service, kind=find.kind)
            log.warning("reconciler.acted", kind=find.kind, service=find.service, key=find.key, reason=find.reason)
            if find.kind == "paused":
                continue  # it is told of when it is handed over
            told[find.service].append(_handed_over(find, reason, now))
            if len(told[find.service]) <= FEW:
                await send_news(ctx, News(event="reconciler.acted", alert=told[find.service][-1]))
        await _tell_rest(ctx, told.values(), now)
        return report

    async def _act(self, ctx: restate.ObjectContext, find: OrphanedSaga, now: datetime) -> str:
        """Do what has to be done about a find; return why, for people."""
        reason = f"{find.kind}: {find.reason}"
        if find.kind == "stalled":
            await ObjectClient(ctx, resume, find.key).send()
        elif find.kind == "halted":
            await run_with_retry(ctx, f"resume {find.id}", self._resume_paused, find.id)
        elif find.kind == "paused":
            if not await run_with_retry(ctx, f"kill {find.id}", self._kill_paused, find.id):
                # It was resumed or ended since, perhaps well; if it is lost, it is found as that.
                raise Conflict("not paused any more")
            await State(ctx, _KILLED + find.mark, datetime).set(now)
        else:
            if await State(ctx, _KILLED + find.mark, datetime).get() is not None:
                reason = f"paused: for longer than {self._config.paused_limit}, so it was killed"
            await self._hand_over_lost(ctx, find, f"the orchestration was lost: {reason}")
        return reason

    async def _hand_over_lost(self, ctx: restate.ObjectContext, find: OrphanedSaga, reason: str) -> None:
        left = await run_with_retry(ctx, f"calls of {find.id}", self._left_behind, find.id)
        # Cancelled once: what is cancelled again may give up what it does to end well.
        cancelled = State(ctx, _CANCELLED + find.mark, list[str])
        before = await cancelled.get() or []
        if running := [id_ for id_ in left.running if id_ not in before]:
            await run_with_retry(ctx, f"cancel calls of {find.id}", self._cancel, running)
            await cancelled.set(before + running)
        if (why := left.explain()) is not None:
            raise Conflict(why)
        tried = State(ctx, _TRIED + find.mark, int)
        number = await tried.get() or 0
        undo, key = roll_back_handler(find.service, find.key), f"reconciler/{find.mark}/{number}"
        try:
            await salvage(ctx, undo, reason=reason, children=left.failed_children, idempotency_key=key)
        except SilentService:
            raise
        except TerminalError as error:
            if not is_own_cancel(error):  # it answered, or was killed; under the same key it would never try again
                await tried.set(number + 1)
            raise

    async def _forget(self, ctx: restate.ObjectContext, names: list[str], now: datetime) -> None:
        """Forget finds that are none any more, but not what was killed: it is none until its grace is over."""
        for name in names:
            killed_at = await State(ctx, name, datetime).get() if name.startswith(_KILLED) else None
            if killed_at is None or now - killed_at > self._config.grace + _KILL_TAKES:
                await State(ctx, name, bool).clear()

    async def _left_behind(self, invocation_id: str) -> LeftBehind:
        async with AdminClient(self._config.admin_url) as admin:
            return await left_behind(admin, invocation_id, self._config.grace)

    async def _cancel(self, invocation_ids: list[str]) -> None:
        async with AdminClient(self._config.admin_url) as admin:
            for each in invocation_ids:
                await _act_on(admin, each, "cancel")

    async def _look(self) -> list[OrphanedSaga]:
        async with AdminClient(self._config.admin_url) as admin:
            return await look(admin, self._config)

    async def _resume_paused(self, invocation_id: str) -> None:
        async with AdminClient(self._config.admin_url) as admin:
            await _act_on(admin, invocation_id, "resume")

    async def _kill_paused(self, invocation_id: str) -> bool:
        is_paused = "select id from sys_invocation_status where status = 'paused' and id = " + sql_text(invocation_id)
        async with AdminClient(self._config.admin_url) as admin:
            return bool(await admin.query(is_paused)) and await _act_on(admin, invocation_id, "kill")


async def _act_on(admin: AdminClient, invocation_id: str, act: InvocationAction) -> bool:
    """Do something with an invocation, unless somebody else was faster; tell if it was done."""
    try:
        await admin.control_invocation(invocation_id, act)
    except EngineError as error:
        if error.status_code not in (404, 409):
            raise
        return False
    return True


def _fresh(found: Iterable[OrphanedSaga], names: Set[str]) -> list[OrphanedSaga]:
    """Return what was not handed over, each once. What failed before comes last, so that it holds up nothing else.

    Args:
        found: What was found.
        names: The names of what is remembered.
    """
    fresh: dict[str, OrphanedSaga] = {}
    for find in found:
        if _SEEN + find.mark not in names:
            fresh.setdefault(find.mark, find)
    return sorted(fresh.values(), key=lambda find: _TRIED + find.mark in names)


def _handed_over(find: OrphanedSaga, reason: str, now: datetime) -> Alert:
    trouble = Trouble.HANDED_OVER
    return Alert(
        id=f"{trouble}/{find.id}",
        trouble=trouble,
        invocation=find.id,
        service=find.service,
        key=find.key,
        reason=reason,
        since=now,
    )


async def _tell_rest(ctx: restate.ObjectContext, told: Iterable[list[Alert]], now: datetime) -> None:
    """Tell in one piece what is more than a few of one service."""
    for alerts in told:
        if rest := alerts[FEW:]:
            many = Alert.of_many(rest, len(rest)).model_copy(update={"since": now})
            await send_news(ctx, News(event="reconciler.acted", alert=many))
