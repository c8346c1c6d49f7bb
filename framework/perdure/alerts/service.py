"""Alerts: invocations that are paused, killed or fail again and again are told to a webhook, once each.

`Alerts` is a virtual object. It queries the engine, compares the snapshot with the alerts that it has sent, and passes
new and resolved alerts to its dispatcher. Each post is an invocation of its own, so the engine retries it for a day. A
crash repeats a post only if its answer was lost. Invocations of one service with the same condition share one alert.

A post is JSON, with these headers:

============================ =========================================================================================
idempotency-key              the same for each attempt to tell the same news
x-perdure-timestamp          when it was posted; seconds since 1970
x-perdure-key                the public key that the signature is checked with, ``publickeyv1_…``
x-perdure-signature          Ed25519, in base64, over ``{timestamp}.{idempotency-key}.{body}``
============================ =========================================================================================

Ed25519 and no shared secret: what a receiver has is public, so that no receiver can speak for the reconciler, and each
may be given the same key. `verify_alert` is what a receiver calls.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import restate
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError
from restate.serde import BytesSerde

from perdure._runtime.places import ValueCodec
from perdure._runtime.sdk import is_replaying
from perdure._runtime.tls import tls_context
from perdure.alerts.conditions import Alert, News, Snapshot, Trouble, compare, survey, with_reasons
from perdure.clients import ServiceClient
from perdure.determinism import Time
from perdure.engine.admin import AdminClient
from perdure.engine.polling import BACKGROUND_CALL_RETRIES
from perdure.errors import PerdureError, RunExhausted
from perdure.handlers import Definition, handler
from perdure.observability.gauge_collector import decode_state_value
from perdure.observability.logging import get_logger
from perdure.observability.metrics import ALERTS
from perdure.runs import RunConfig, run_with_retry
from perdure.security.keys import BadSignature, PrivateKey, PublicKey
from perdure.state import State, StateContext
from perdure.targets import Target

__all__ = [
    "BEAT",
    "DISPATCHER",
    "KEY",
    "KILLED_WITHIN",
    "RETRIES",
    "SERVICE",
    "Alert",
    "AlertList",
    "Alerts",
    "News",
    "Trouble",
    "list_alerts",
    "look_target",
    "read_alerts",
    "send_news",
    "tell_target",
    "troubles",
    "verify_alert",
]

log = get_logger("perdure.alerts.service")

SERVICE = "Alerts"
DISPATCHER = "AlertDispatcher"
KEY = "all"

RETRIES = 5
"""How many failed attempts are trouble, if nothing else is said."""
KILLED_WITHIN = timedelta(hours=1)
"""How long a kill is news, if nothing else is said."""
BEAT = timedelta(minutes=1)
"""How often `Alerts` is told that somebody looks, when there is no news."""

_PREFIX = "alert/"
_MANY = "many/"
_MORE = "more"
_LOOKED = "looked"
_BEAT = "beat"
_BEATS_MISSED = 3
_MOST_KEPT = 200
_KEPT = timedelta(days=1)
_TOLD_WITHIN = timedelta(days=1)
_FRESH = timedelta(minutes=5)
_POSTED_WITHIN = 10.0
_STATE = (
    "select service_name, service_key, key, encode(value, 'hex') as value from state "
    "where service_name = 'Alerts' and service_key = 'all'"
)


class AlertList(BaseModel):
    """Alerts, the newest first.

    Args:
        open: Those that last; of one service and trouble at most `perdure.alerts.conditions.WINDOW`.
        more: How many last beyond those. The engine's SQL has them all.
        over: Those that are over, of the last day.
        looked: When `look` was called last; the reconciler calls it at each change, and once in a while without. None
            when it never was.
        beat: How often it is called at least.
    """

    open: list[Alert]
    over: list[Alert]
    more: int = 0
    looked: AwareDatetime | None = None
    beat: timedelta = BEAT

    def is_watched(self, now: datetime) -> bool:
        """Tell whether somebody looks as often as they should; else what is listed may be old.

        Args:
            now: The time.
        """
        return self.looked is not None and now - self.looked <= self.beat * _BEATS_MISSED


list_alerts: Target[None, AlertList] = Target(SERVICE, "list", None, AlertList)
look_target: Target[None, int] = Target(SERVICE, "look", None, int)
tell_target: Target[News, None] = Target(DISPATCHER, "tell", News, None)


async def troubles(admin: AdminClient, retries: int, killed_within: timedelta) -> list[Alert]:
    """Ask the engine what is wrong now; of each service and trouble the oldest `perdure.alerts.conditions.WINDOW`.

    Args:
        admin: The engine.
        retries: How many failed attempts are trouble.
        killed_within: How long a kill is news.

    Raises:
        EngineError: The engine does not answer, or refuses the query.
    """
    return (await survey(admin, retries, killed_within, silent=DISPATCHER)).alerts


class Alerts:
    """Watches one engine's invocations, and tells a webhook.

    Args:
        admin_url: The engine's admin API.
        webhook_url: Who is told; nobody when None, and alerts are listed only.
        webhook_key: Signs what is posted; unsigned when None.
        retries: How many failed attempts are trouble.
        killed_within: How long a kill is news.
        beat: How often `look` is called at least.
    """

    def __init__(
        self,
        admin_url: str,
        *,
        webhook_url: str | None = None,
        webhook_key: PrivateKey | None = None,
        retries: int = RETRIES,
        killed_within: timedelta = KILLED_WITHIN,
        beat: timedelta = BEAT,
    ) -> None:
        self._admin_url = admin_url
        self._url = webhook_url
        self._key = webhook_key
        self._retries = retries
        self._killed_within = killed_within
        self.beat = beat
        self._object = restate.VirtualObject(
            SERVICE,
            description="Which invocations are in trouble, told once each.",
            invocation_retry_policy=BACKGROUND_CALL_RETRIES,
        )
        self._dispatcher = restate.Service(DISPATCHER, description="Tells a webhook, as often as it takes.")
        handler(self._object, "exclusive", name="look", ingress_private=False)(self.look)
        handler(self._object, "shared", name="list", read_only=True, ingress_private=False)(self.all)
        handler(self._dispatcher, name="tell", ingress_private=True)(self.tell)

    def definitions(self) -> list[Definition]:
        """Return what to serve."""
        return [self._object, self._dispatcher]

    async def seen(self, admin: AdminClient) -> frozenset[str]:
        """Ask the engine what is wrong now, and return marks of it; when they change, `look` is to be called.

        Args:
            admin: The engine.

        Raises:
            EngineError: The engine does not answer, or refuses the query.
        """
        return (await survey(admin, self._retries, self._killed_within, silent=DISPATCHER)).marks()

    async def look(self, ctx: restate.ObjectContext) -> int:
        """Tell what is new, and what is over; return how many invocations are in trouble.

        Public on the ingress, where the reconciler calls it from. Whoever else calls it makes it look earlier, and no
        more: it takes nothing from its caller, and tells nothing twice.
        """
        found = await run_with_retry(ctx, RunConfig("look", max_retries=5), self._look)
        now = await Time(ctx).now()
        remembered = await _Remembered.read(ctx)
        known = remembered.known
        for name in (
            remembered.unreadable
        ):  # found anew, if it lasts; at the dispatcher, the same news has the same idempotency key
            log.warning("alerts.unreadable", alert=name)
            await _alert(ctx, name).clear()
        changes = compare(known, remembered.many, found, now)
        # Told before it is remembered: killed in between, it is told by the next look, under the same idempotency key.
        for news in changes.news:
            alert = news.alert
            log.warning(news.event, trouble=alert.trouble, about=alert.id, number=alert.number, reason=alert.reason)
            await send_news(ctx, news)
        for alert in changes.alerts:
            await _alert(ctx, _PREFIX + alert.id).set(alert)
            known[alert.id] = alert
        for name, alike in changes.many.items():
            await (_alert(ctx, _MANY + name).clear() if alike is None else _alert(ctx, _MANY + name).set(alike))
        ended = [(alert.over, alert.id) for alert in known.values() if alert.over is not None]
        for number, (over, name) in enumerate(sorted(ended, reverse=True)):
            if number >= _MOST_KEPT or over < now - _KEPT:
                await _alert(ctx, _PREFIX + name).clear()
        more = sum(found.more.values())
        await State(ctx, _MORE, int).set(more)
        await State(ctx, _LOOKED, datetime).set(now)
        await State(ctx, _BEAT, timedelta).set(self.beat)
        return len(found.alerts) + more

    async def all(self, ctx: restate.ObjectSharedContext) -> AlertList:
        """List what is wrong, and what was within the last day."""
        return (await _Remembered.read(ctx)).listed(
            more=await State(ctx, _MORE, int, default=0).get(),
            looked=await State(ctx, _LOOKED, datetime).get(),
            beat=self.beat,
        )

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
            outcome = "exhausted"
            log.error("reconciler.webhook_failed", alert=news.alert.id, error=error.message)  # noqa: TRY400 - it says it all
        if not is_replaying(ctx):
            ALERTS.count(kind=news.alert.trouble.value, outcome=outcome)

    async def _post(self, url: str, news: News, number: str) -> None:
        body = news.model_dump_json().encode()
        headers = {"content-type": "application/json", "idempotency-key": number, **_signed(self._key, number, body)}
        # What it answers is not read: a receiver that sends without end, or a byte now and then, holds up nothing.
        # Its address may hold a secret: it is in no message, and httpx makes no span, which would tell it.
        with suppress_http_instrumentation():
            async with (
                asyncio.timeout(_POSTED_WITHIN),
                httpx.AsyncClient(timeout=_POSTED_WITHIN, verify=tls_context()) as http,
                http.stream("POST", url, content=body, headers=headers) as response,
            ):
                if not response.is_success:
                    raise PerdureError(f"the webhook answers {response.status_code}")

    async def _look(self) -> Snapshot:
        async with AdminClient(self._admin_url) as admin:
            found = await survey(admin, self._retries, self._killed_within, silent=DISPATCHER)
            return await with_reasons(admin, found)


async def read_alerts(admin: AdminClient, codec: ValueCodec | None = None) -> AlertList:
    """Return what `Alerts` knows without asking it, since its own service may be what is down.

    Args:
        admin: The engine.
        codec: What the services' journal is encrypted with; None when it is in clear.

    Raises:
        UnreadableValue: The journal is encrypted with another key.
        EngineError: The engine does not answer, or refuses the query.
    """
    rows = await admin.query(_STATE)
    state = {row["key"]: decode_state_value(row, codec) for row in rows}
    return _Remembered(state).listed(
        more=int(state.get(_MORE, b"0")),
        looked=TypeAdapter(datetime).validate_json(state[_LOOKED]) if _LOOKED in state else None,
        beat=TypeAdapter(timedelta).validate_json(state[_BEAT]) if _BEAT in state else BEAT,
    )


async def send_news(ctx: restate.Context, news: News) -> None:
    """Have the webhook told, durably; of the same news once.

    Args:
        ctx: The handler's context.
        news: What is told.
    """
    alert = news.alert
    same = f"{news.event}/{alert.id}/{alert.number}/{'' if alert.since is None else alert.since.isoformat()}"
    await ServiceClient(ctx, tell_target).send(news, idempotency_key=same)


def verify_alert(body: bytes, headers: Mapping[str, str], key: PublicKey, *, now: datetime | None = None) -> News:
    """Check what a webhook was sent, and return it.

    Args:
        body: The request's body, as it came.
        headers: The request's headers, names in lower case.
        key: The reconciler's public key, known from elsewhere than this request.
        now: The time, for tests; the clock's by default.

    Raises:
        BadSignature: It is not from the reconciler, was changed, or is older than five minutes.
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


class _Remembered:
    """What `Alerts` keeps in its state. Nobody's news waits until an entry of another version can be read.

    Args:
        entries: The entries of its state, by name.
    """

    def __init__(self, entries: Mapping[str, bytes]) -> None:
        self.known: dict[str, Alert] = {}
        """Of invocations, by the alert's id."""
        self.many: dict[str, Alert] = {}
        """Of many, by the alert's id."""
        self.unreadable: list[str] = []
        """Names of entries that this version can't read."""
        for name in sorted(entries):
            alerts = self.known if name.startswith(_PREFIX) else self.many if name.startswith(_MANY) else None
            if alerts is None:
                continue
            try:
                alert = Alert.model_validate_json(entries[name])
            except ValidationError:
                self.unreadable.append(name)
            else:
                alerts[alert.id] = alert

    @classmethod
    async def read(cls, ctx: StateContext) -> _Remembered:
        """Read it in a handler."""
        return cls({name: await ctx.get(name, serde=BytesSerde()) or b"" for name in sorted(await ctx.state_keys())})

    def listed(self, *, more: int, looked: datetime | None, beat: timedelta) -> AlertList:
        """List it; what can't be read is counted, and so not left out."""
        oldest = datetime.min.replace(tzinfo=UTC)
        newest = sorted(self.known.values(), key=lambda each: (each.since or oldest, each.id), reverse=True)
        return AlertList(
            open=[alert for alert in newest if alert.over is None],
            over=[alert for alert in newest if alert.over is not None],
            more=more + sum(name.startswith(_PREFIX) for name in self.unreadable),
            looked=looked,
            beat=beat,
        )
