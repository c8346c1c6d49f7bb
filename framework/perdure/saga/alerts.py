"""Alerts: invocations that are paused, killed or fail again and again are told to a webhook, once each.

`Alerts` is a virtual object that knows what it has told: it asks the engine in SQL, compares, and sends what is new,
and what is over, to its relay. The relay posts it, and is an invocation of its own for each piece of news: so the
engine tries it again for a day, nothing waits for a receiver that is down, and a crash tells nothing twice but a post
whose answer was lost.

A post is JSON, with these headers:

============================ =========================================================================================
idempotency-key              the same for each attempt to tell the same news
x-perdure-timestamp          when it was posted; seconds since 1970
x-perdure-key                the public key that the signature is checked with, ``publickeyv1_…``
x-perdure-signature          Ed25519, in base64, over ``{timestamp}.{idempotency-key}.{body}``
============================ =========================================================================================

Ed25519 and no shared secret: what a receiver has is public, so that no receiver can speak for the sentinel, and each
may be given the same key. `verify_alert` is what a receiver calls.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import httpx
import restate
from pydantic import AwareDatetime, BaseModel, ConfigDict

from perdure._sdk import is_replaying
from perdure.admin import AdminClient
from perdure.binding import Definition, handler
from perdure.clients import ServiceClient
from perdure.determinism import Time
from perdure.errors import RunExhausted
from perdure.observability.logging import get_logger
from perdure.observability.metrics import ALERTS
from perdure.runs import RunConfig, run_with_retry
from perdure.security.keys import BadSignature, PrivateKey, PublicKey
from perdure.state import State
from perdure.targets import Target

log = get_logger("perdure.saga.alerts")

SERVICE = "Alerts"
RELAY = "AlertRelay"
KEY = "all"

_PREFIX = "alert/"
_MOST_KEPT = 200
_KEPT = timedelta(days=1)
_TOLD_WITHIN = timedelta(days=1)
_FRESH = timedelta(minutes=5)


class Trouble(StrEnum):
    """What is wrong with an invocation."""

    PAUSED = "paused"
    BACKING_OFF = "backing_off"
    KILLED = "killed"
    HANDED_OVER = "handed_over"
    """Nobody looked after its saga any more, and the sentinel acted."""


class Alert(BaseModel):
    """An alert.

    Args:
        id: What it is about: ``{trouble}/{invocation}``.
        trouble: What is wrong.
        invocation: The invocation.
        service: Its service.
        handler: Its handler.
        key: Its key; empty for a plain service.
        reason: What the engine says of it.
        since: When it was seen first.
        over: When it was seen no more; None as long as it lasts.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    trouble: Trouble
    invocation: str
    service: str
    handler: str = ""
    key: str = ""
    reason: str = ""
    since: AwareDatetime | None = None
    over: AwareDatetime | None = None


class AlertList(BaseModel):
    """Alerts, the newest first.

    Args:
        open: Those that last.
        over: Those that are over, of the last day.
    """

    open: list[Alert]
    over: list[Alert]


class News(BaseModel):
    """What the webhook is told.

    Args:
        event: ``alert.raised`` or ``alert.over``; ``sentinel.acted`` for what the sentinel did.
        alert: The alert.
    """

    event: str
    alert: Alert


list_alerts: Target[None, AlertList] = Target(SERVICE, "list", type(None), AlertList)
look_target: Target[None, int] = Target(SERVICE, "look", type(None), int)
tell_target: Target[News, None] = Target(RELAY, "tell", News, type(None))


def trouble_sql(retries: int, killed_within: timedelta) -> str:
    """Return the query for everything that is wrong now.

    Args:
        retries: How many failed attempts are trouble.
        killed_within: How long a kill is news.
    """
    recent = f"now() - interval '{int(killed_within.total_seconds())} seconds'"
    columns = "id, target_service_name as service, target_handler_name as handler, target_service_key as key"
    return f"""
      select {columns}, status, last_failure as reason from sys_invocation
      where target_service_name != '{RELAY}'
      and (status = 'paused' or (status = 'backing-off' and retry_count >= {retries}))
      union all
      select {columns}, 'killed' as status, completion_failure as reason from sys_invocation
      where status = 'completed' and completion_failure = '[409] killed' and modified_at > {recent}"""


async def troubles(admin: AdminClient, retries: int, killed_within: timedelta) -> list[Alert]:
    """Ask the engine what is wrong now.

    Args:
        admin: The engine.
        retries: How many failed attempts are trouble.
        killed_within: How long a kill is news.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    found: list[Alert] = []
    for row in await admin.query(trouble_sql(retries, killed_within)):
        trouble = Trouble(row["status"].replace("-", "_"))
        found.append(
            Alert(
                id=f"{trouble}/{row['id']}",
                trouble=trouble,
                invocation=row["id"],
                service=row["service"],
                handler=row.get("handler") or "",
                key=row.get("key") or "",  # a column that is null is left out
                reason=(row.get("reason") or "").partition("\n")[0][:500],
            )
        )
    return found


class Alerts:
    """Watches one engine's invocations, and tells a webhook.

    Args:
        admin_url: The engine's admin API.
        webhook_url: Who is told; nobody when None, and alerts are listed only.
        webhook_key: Signs what is posted; unsigned when None.
        retries: How many failed attempts are trouble.
        killed_within: How long a kill is news.
    """

    def __init__(
        self,
        admin_url: str,
        *,
        webhook_url: str | None = None,
        webhook_key: PrivateKey | None = None,
        retries: int = 5,
        killed_within: timedelta = timedelta(hours=1),
    ) -> None:
        self._admin_url = admin_url
        self._url = webhook_url
        self._key = webhook_key
        self._retries = retries
        self._killed_within = killed_within
        self._object = restate.VirtualObject(SERVICE, description="Which invocations are in trouble, told once each.")
        self._relay = restate.Service(RELAY, description="Tells a webhook, as often as it takes.")
        handler(self._object, "exclusive", name="look", ingress_private=False)(self.look)
        handler(self._object, "shared", name="list", ingress_private=False)(self.all)
        handler(self._relay, name="tell", ingress_private=True)(self.tell)

    def definitions(self) -> list[Definition]:
        """Return what to serve."""
        return [self._object, self._relay]

    async def seen(self, admin: AdminClient) -> frozenset[str]:
        """Ask the engine what is wrong now, and return the ids; when they change, `look` is to be called.

        Args:
            admin: The engine.

        Raises:
            EngineError: The engine does not answer, or refuses the query.
        """
        return frozenset(each.id for each in await troubles(admin, self._retries, self._killed_within))

    async def look(self, ctx: restate.ObjectContext) -> int:
        """Tell what is new, and what is over; return how many alerts are open."""
        found = await run_with_retry(ctx, RunConfig("look", max_retries=5), self._look)
        now = await Time(ctx).now()
        names = [name for name in await ctx.state_keys() if name.startswith(_PREFIX)]
        known = {name: await _alert(ctx, name).get() for name in sorted(names)}
        wrong = {_PREFIX + each.id: each for each in found}
        for name in sorted(wrong):
            before = known.get(name)
            if before is None or before.over is not None:
                await self._note(ctx, name, "alert.raised", wrong[name].model_copy(update={"since": now}))
        for name, alert in known.items():
            if alert is not None and alert.over is None and name not in wrong:
                await self._note(ctx, name, "alert.over", alert.model_copy(update={"over": now}))
        ended = [(alert.over, name) for name, alert in known.items() if alert is not None and alert.over is not None]
        for number, (over, name) in enumerate(sorted(ended, reverse=True)):
            if name not in wrong and (number >= _MOST_KEPT or over < now - _KEPT):
                await _alert(ctx, name).clear()
        return len(wrong)

    async def all(self, ctx: restate.ObjectSharedContext) -> AlertList:
        """List what is wrong, and what was within the last day."""
        names = [name for name in await ctx.state_keys() if name.startswith(_PREFIX)]
        found = [alert for name in names if (alert := await _alert(ctx, name).get()) is not None]
        found.sort(key=lambda alert: (alert.since or datetime.min.replace(tzinfo=UTC), alert.id), reverse=True)
        return AlertList(
            open=[alert for alert in found if alert.over is None],
            over=[each for each in found if each.over is not None],
        )

    async def _note(self, ctx: restate.ObjectContext, name: str, event: str, alert: Alert) -> None:
        await _alert(ctx, name).set(alert)
        log.warning(event, trouble=alert.trouble, about=alert.service, invocation=alert.invocation, reason=alert.reason)
        await ServiceClient(ctx, tell_target).send(News(event=event, alert=alert))

    async def tell(self, ctx: restate.Context, news: News) -> None:
        """Post one piece of news, again and again for a day."""
        if self._url is None:
            return
        config = RunConfig(
            "post",
            max_retries=None,
            initial_delay=timedelta(seconds=1),
            max_delay=timedelta(minutes=5),
            max_duration=_TOLD_WITHIN,
        )
        outcome = "delivered"
        try:
            await run_with_retry(ctx, config, self._post, self._url, news, ctx.request().id)
        except RunExhausted as error:
            outcome = "given_up"
            log.error("sentinel.webhook_failed", alert=news.alert.id, error=error.message)  # noqa: TRY400 - it says it all
        if not is_replaying(ctx):
            ALERTS.count(kind=news.alert.trouble.value, outcome=outcome)

    async def _post(self, url: str, news: News, number: str) -> None:
        body = news.model_dump_json().encode()
        headers = {"content-type": "application/json", "idempotency-key": number}
        async with httpx.AsyncClient(timeout=10.0) as http:
            response = await http.post(url, content=body, headers={**headers, **_signed(self._key, number, body)})
        response.raise_for_status()

    async def _look(self) -> list[Alert]:
        async with AdminClient(self._admin_url) as admin:
            return await troubles(admin, self._retries, self._killed_within)


def verify_alert(body: bytes, headers: Mapping[str, str], key: PublicKey, *, now: datetime | None = None) -> News:
    """Check what a webhook was sent, and return it.

    Args:
        body: The request's body, as it came.
        headers: The request's headers, names in lower case.
        key: The sentinel's public key, known from elsewhere than this request.
        now: The time, for tests; the clock's by default.

    Raises:
        BadSignature: It is not from the sentinel, was changed, or is older than five minutes.
    """
    try:
        stamp, number = headers["x-perdure-timestamp"], headers["idempotency-key"]
        signature = base64.b64decode(headers["x-perdure-signature"], validate=True)
        posted = datetime.fromtimestamp(int(stamp), UTC)
    except (KeyError, ValueError, OverflowError, binascii.Error) as error:
        raise BadSignature("the alert is not signed, or its headers can't be read") from error
    key.verify(_message(stamp, number, body), signature)
    if abs((now or datetime.now(UTC)) - posted) > _FRESH:
        raise BadSignature("the alert was signed more than five minutes ago, or the clocks differ")
    return News.model_validate_json(body)


def _signed(key: PrivateKey | None, number: str, body: bytes) -> dict[str, str]:
    if key is None:
        return {}
    stamp = str(int(time.time()))
    signature = base64.b64encode(key.sign(_message(stamp, number, body))).decode()
    return {"x-perdure-timestamp": stamp, "x-perdure-key": key.public.id, "x-perdure-signature": signature}


def _message(stamp: str, number: str, body: bytes) -> bytes:
    return f"{stamp}.{number}.".encode() + body


def _alert(ctx: Any, name: str) -> State[Alert]:
    return State(ctx, name, Alert)
