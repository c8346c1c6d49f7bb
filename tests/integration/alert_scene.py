"""A failing service, its alerts, and a webhook receiver."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import restate as sdk

from perdure import IngressClient, Target, handler
from perdure.alerts.conditions import AlertNotification, stored_conditions_sql
from perdure.alerts.service import ALERT_DISPATCHER, ALERTS_KEY, AlertList, Alerts, list_alerts, scan_target
from perdure.engine.admin import AdminClient
from perdure.security import PrivateKey
from perdure.testing import Restate
from tests.integration.alert_receiver import OK, Receiver, receiving
from tests.support import eventually

TICK = timedelta(milliseconds=20)
ADDRESSEE = "hush-hush"
SOON = timedelta(minutes=1)


class Patient:
    """Service that fails until repaired: ``go`` is paused after some attempts, ``go_on`` is retried without end."""

    def __init__(self, attempts: int = 2) -> None:
        self.name = f"Fragile{uuid4().hex[:8]}"
        self.works = threading.Event()
        self.trying = threading.Event()
        self.service = sdk.Service(self.name)
        policy = sdk.InvocationRetryPolicy(
            initial_interval=TICK, max_interval=TICK, max_attempts=attempts, on_max_attempts="pause"
        )
        for_ever = sdk.InvocationRetryPolicy(initial_interval=TICK, max_interval=TICK, max_attempts=100_000)
        handler(self.service, name="go", invocation_retry_policy=policy)(self.go)
        handler(self.service, name="go_on", invocation_retry_policy=for_ever)(self.go_on)

    async def go(self, ctx: sdk.Context) -> str:
        if not self.works.is_set():
            raise OSError("the wire is cut")
        return "done"

    async def go_on(self, ctx: sdk.Context) -> str:
        self.trying.set()
        await asyncio.sleep(0.1)
        self.trying.clear()
        raise OSError("the wire is cut, again")

    def target(self, name: str = "go") -> Target[None, str]:
        return Target(self.name, name, None, str)


class Scene:
    """Failing service with alerts."""

    def __init__(self, patient: Patient, alerts: Alerts, receiver: Receiver, env: Any) -> None:
        self.name = patient.name
        self.patient = patient
        self.alerts = alerts
        self.receiver = receiver
        self.ingress = IngressClient(env.ingress)
        self.admin = AdminClient(env.admin)

    async def conditions(self) -> set[str]:
        stored = await self.admin.query(stored_conditions_sql(SOON))
        return set(await self.alerts.fingerprint(self.admin, stored))

    async def until_detected(self, *ids: str) -> None:
        async def probe() -> bool:
            return set(ids) <= await self.conditions()

        await eventually(probe, what=f"conditions {ids[:3]}", within=30)

    async def scan(self) -> None:
        await self.ingress.call(scan_target, key=ALERTS_KEY)

    async def notified(self, number: int) -> list[AlertNotification]:
        """Wait for a number of notifications, scan again, and check that the number is final."""

        async def probe() -> bool:
            return len(self.receiver.took(self.name)) >= number

        await eventually(probe, what=f"{number} notifications", within=30)
        await self.scan()  # later notifications follow it
        async with httpx.AsyncClient() as http:
            await eventually(lambda: self._quiet(http), what="end of the dispatcher's work")
        notifications = self.receiver.took(self.name)
        assert len(notifications) == number
        return notifications

    async def _quiet(self, http: httpx.AsyncClient) -> bool:
        rows = await AdminClient(self.admin.url, http=http).query(
            f"select id from sys_invocation where target_service_name = '{ALERT_DISPATCHER}' and status != 'completed'"
        )
        return not rows

    async def listed(self) -> AlertList:
        found = await self.ingress.call(list_alerts, key=ALERTS_KEY)
        mine = [[alert for alert in each if alert.service == self.name] for each in (found.open, found.resolved)]
        return AlertList(open=mine[0], resolved=mine[1])

    async def close(self) -> None:
        await self.ingress.close()
        await self.admin.close()


Start = Callable[..., Any]


@asynccontextmanager
async def scenes_of(restate: Restate) -> AsyncIterator[Start]:
    """Yield a function that starts a scene with the receiver's response and further settings of `Alerts`."""
    key = PrivateKey.generate()
    scenes: list[Scene] = []
    receivers: list[Any] = []

    async def start(answer: Callable[[AlertNotification], int] = lambda _: OK, **settings: Any) -> Scene:
        receivers.append(receiving(Receiver(key, answer)))
        receiver = receivers[-1].__enter__()
        patient = Patient()
        url = f"{receiver.url}?to={ADDRESSEE}"
        alerts = Alerts(restate.server.admin, webhook_url=url, webhook_key=key, recent_kill=SOON, **settings)
        env = await restate.serve(patient.service, alerts)
        scenes.append(Scene(patient, alerts, receiver, env))
        return scenes[-1]

    yield start
    for each in scenes:
        await each.close()
    await restate.close()  # before its receiver is gone
    for each in receivers:
        each.__exit__(None, None, None)
