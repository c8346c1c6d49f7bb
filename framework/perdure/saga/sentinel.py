"""The sentinel: finds sagas that nobody looks after any more, and hands them to `Rollbacks`.

A kill delivers nothing to a handler, and a paused invocation waits for ever; both leave a saga half done and silent.
The engine knows them, so the sentinel asks it, in SQL, at an interval:

- an orchestration that ended without closing its saga (killed, by a person or by its retry policy);
- one that asked for its rollback, which then never began, since what was to begin it was killed;
- one that is paused for longer than a limit; it is killed first, so that it can't go on beside its rollback;
- a rollback that is open, but for which nothing is running or scheduled (killed, too);
- an invocation of `Rollbacks`, its relay, the index of dead letters or the relay of alerts that is paused; it is
  resumed.

Looking is a plain query by a process; only when it finds something does it call `sweep`, a durable handler that asks
again by itself. So anybody may call `sweep`: it does nothing but what has to be done.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Set
from contextlib import asynccontextmanager
from datetime import datetime

import restate
from pydantic import BaseModel

from perdure._sdk import is_replaying
from perdure.admin import AdminClient, sql_text
from perdure.binding import Definition, handler
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import (
    Conflict,
    EngineError,
    TerminalError,
)
from perdure.ingress import IngressClient
from perdure.observability.logging import get_logger
from perdure.observability.metrics import SENTINEL_FINDS
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.alerts import BEAT, Alerts, look_target, send_news
from perdure.saga.alerts import KEY as ALERTS_KEY
from perdure.saga.census import count_sagas, saga_census
from perdure.saga.finds import HANDED_OVER, Find, look
from perdure.saga.messages import roll_back_handler
from perdure.saga.plan import CompensationHandler
from perdure.saga.rollback import resume
from perdure.saga.salvage import SilentService, failed_children, salvage
from perdure.saga.sentinel_config import SentinelConfig
from perdure.saga.trouble import FEW, Alert, News, Trouble
from perdure.state import State
from perdure.targets import Target
from perdure.waiting import is_own_cancel
from perdure.watch import ERRAND, Watch

log = get_logger("perdure.saga.sentinel")

_KEY = "all"
_SEEN = "seen/"
_TRIED = "tried/"
_MOST_AT_ONCE = 500


class SweepReport(BaseModel):
    """What a sweep did.

    Args:
        acted_on: What was handed over or set going again.
        failed: What could not be, each with why.
        left: How much was left to the next sweep, so that none grows too long to be replayed after a crash.
    """

    acted_on: list[Find] = []
    failed: dict[str, str] = {}
    left: int = 0


class Sentinel:
    """Watches one engine's sagas.

    Args:
        config: Where to look, and when to act.
    """

    def __init__(self, config: SentinelConfig) -> None:
        self._config = config
        self._definition = restate.VirtualObject(
            "Sentinel",
            description="Hands sagas to Rollbacks that nobody looks after any more.",
            invocation_retry_policy=ERRAND,
        )
        handler(self._definition, "exclusive", ingress_private=False)(self.sweep)
        self._alerts = Alerts(
            config.admin_url,
            webhook_url=config.webhook_url,
            webhook_key=config.webhook_key,
            retries=config.alert_retries,
            beat=max(BEAT, config.interval),
        )
        self._sweep: Target[None, SweepReport] = Target("Sentinel", "sweep", type(None), SweepReport)
        self._known: set[str] = set()
        self._told: frozenset[str] = frozenset()
        self._beat_at = 0.0

    def definitions(self) -> list[Definition]:
        """Return what to serve."""
        return [self._definition, *self._alerts.definitions()]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at once, and then at the interval, as long as the context is entered."""
        config = self._config
        self._known, self._told, self._beat_at = set(), frozenset(), 0.0
        watch = Watch(
            "sentinel",
            log,
            config.admin_url,
            config.ingress_url,
            config.interval,
            config.codec,
            saga_census(),
            count_sagas,
            self._look_and_act,
        )
        async with watch.watching():
            yield

    async def _look_and_act(self, admin: AdminClient, ingress: IngressClient) -> None:
        # Beside each other: either may wait for services that don't answer, or fail until other code is deployed.
        both = (self._tell(admin, ingress), self._hand_over(admin, ingress))
        failures = [each for each in await asyncio.gather(*both, return_exceptions=True) if each is not None]
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

    async def sweep(self, ctx: restate.ObjectContext) -> SweepReport:
        """Hand over what nobody looks after, each find once."""
        found = await run_with_retry(ctx, RunConfig("look", max_retries=5), self._look)
        now = await Time(ctx).now()
        names = await ctx.state_keys()
        marks = {find.mark for find in found}
        for name in sorted(name for name in names if name.partition("/")[2] not in marks):
            await State(ctx, name, bool).clear()
        report = SweepReport()
        silent: set[str] = set()
        told: defaultdict[str, list[Alert]] = defaultdict(list)
        acts = 0
        for find in _fresh(found, set(names)):
            if acts == _MOST_AT_ONCE:
                report.left += 1
                continue
            try:
                if find.service in silent:
                    raise SilentService(f"{find.service} does not answer")
                acts += 1
                await self._act(ctx, find)
            except TerminalError as error:
                if is_own_cancel(error):
                    raise
                if isinstance(error, SilentService):
                    silent.add(find.service)
                log.warning("sentinel.failed", kind=find.kind, service=find.service, key=find.key, error=error.message)
                report.failed[find.mark] = error.message
                continue
            report.acted_on.append(find)
            if find.kind in HANDED_OVER:
                await State(ctx, _SEEN + find.mark, bool).set(True)
            if not is_replaying(ctx):
                SENTINEL_FINDS.count(service=find.service, kind=find.kind)
            log.warning("sentinel.acted", kind=find.kind, service=find.service, key=find.key, reason=find.reason)
            told[find.service].append(_handed_over(find, now))
            if len(told[find.service]) <= FEW:
                await send_news(ctx, News(event="sentinel.acted", alert=told[find.service][-1]))
        await _tell_rest(ctx, told.values(), now)
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
        tried = State(ctx, _TRIED + find.mark, int)
        number = await tried.get() or 0
        children = await run_with_retry(ctx, f"children of {find.id}", self._failed_children, find.id)
        reason = f"the orchestration was lost: {find.kind}: {find.reason}"
        undo, key = roll_back_handler(find.service, find.key), f"sentinel/{find.mark}/{number}"
        try:
            await salvage(ctx, undo, reason=reason, children=children, idempotency_key=key)
        except SilentService:
            raise
        except TerminalError as error:
            if not is_own_cancel(error):  # it answered, or was killed; under the same key it would never try again
                await tried.set(number + 1)
            raise

    async def _failed_children(self, invocation_id: str) -> list[CompensationHandler]:
        async with AdminClient(self._config.admin_url) as admin:
            return await failed_children(admin, invocation_id)

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


def _fresh(found: Iterable[Find], names: Set[str]) -> list[Find]:
    """Return what was not handed over, each once. What failed before comes last, so that it holds up nothing else.

    Args:
        found: What was found.
        names: The names of what is remembered.
    """
    fresh: dict[str, Find] = {}
    for find in found:
        if _SEEN + find.mark not in names:
            fresh.setdefault(find.mark, find)
    return sorted(fresh.values(), key=lambda find: _TRIED + find.mark in names)


def _handed_over(find: Find, now: datetime) -> Alert:
    trouble = Trouble.HANDED_OVER
    return Alert(
        id=f"{trouble}/{find.id}",
        trouble=trouble,
        invocation=find.id,
        service=find.service,
        key=find.key,
        reason=f"{find.kind}: {find.reason}",
        since=now,
    )


async def _tell_rest(ctx: restate.ObjectContext, told: Iterable[list[Alert]], now: datetime) -> None:
    """Tell in one piece what is more than a few of one service."""
    for alerts in told:
        if rest := alerts[FEW:]:
            many = Alert.of_many(rest, len(rest)).model_copy(update={"since": now})
            await send_news(ctx, News(event="sentinel.acted", alert=many))
