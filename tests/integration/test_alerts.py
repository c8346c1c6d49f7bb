"""Alerts on a real engine: each trouble is told once, signed, however bad the receiver, and its end as well."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import restate as sdk

from perdure import AdminClient, IngressClient, Target, handler
from perdure.admin import sql_text
from perdure.observability.metrics import ALERTS
from perdure.ports import free_ports
from perdure.saga import alerts as alerts_module
from perdure.saga.alerts import KEY, RELAY, AlertList, Alerts, News, list_alerts, look_target
from perdure.saga.trouble import FEW
from perdure.security import PrivateKey
from tests.integration.alert_receiver import OK, Receiver, receiving
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")

TICK = timedelta(milliseconds=20)
ADDRESSEE = "hush-hush"
SOON = timedelta(minutes=1)
PROCESS = Path(__file__).with_name("alerting_process.py")


class Patient:
    """A service that fails until it works: ``go`` is paused after its first attempts, ``go_on`` is tried for ever.

    Args:
        attempts: How often ``go`` is tried before it is paused.
    """

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
        return Target(self.name, name, type(None), str)


class Scene:
    """A service in trouble, and who tells of it."""

    def __init__(self, patient: Patient, alerts: Alerts, receiver: Receiver, env: Any) -> None:
        self.name = patient.name
        self.patient = patient
        self.alerts = alerts
        self.receiver = receiver
        self.ingress = IngressClient(env.ingress)
        self.admin = AdminClient(env.admin)

    async def seen(self) -> set[str]:
        return set(await self.alerts.seen(self.admin))

    async def until_seen(self, *ids: str) -> None:
        async def probe() -> bool:
            return set(ids) <= await self.seen()

        await eventually(probe, what=f"trouble {ids[:3]}", within=30)

    async def look(self) -> None:
        await self.ingress.call(look_target, key=KEY)

    async def told(self, number: int) -> list[News]:
        """Return what was told, once it is that much; look again, and see that it stays that much."""

        async def probe() -> bool:
            return len(self.receiver.took(self.name)) >= number

        await eventually(probe, what=f"{number} pieces of news", within=30)
        await self.look()  # what comes after it is told after it
        async with httpx.AsyncClient() as http:
            await eventually(lambda: self._quiet(http), what="end of the relay's work")
        news = self.receiver.took(self.name)
        assert len(news) == number
        return news

    async def _quiet(self, http: httpx.AsyncClient) -> bool:
        rows = await AdminClient(self.admin.url, http=http).query(
            f"select id from sys_invocation where target_service_name = '{RELAY}' and status != 'completed'"
        )
        return not rows

    async def listed(self) -> AlertList:
        found = await self.ingress.call(list_alerts, key=KEY)
        mine = [[alert for alert in each if alert.service == self.name] for each in (found.open, found.over)]
        return AlertList(open=mine[0], over=mine[1])

    async def close(self) -> None:
        await self.ingress.close()
        await self.admin.close()


@pytest.fixture
async def scene(restate) -> AsyncIterator[Callable[..., Any]]:
    key = PrivateKey.generate()
    scenes: list[Scene] = []
    receivers: list[Any] = []

    async def start(answer: Callable[[News], int] = lambda _: OK, **settings: Any) -> Scene:
        receivers.append(receiving(Receiver(key, answer)))
        receiver = receivers[-1].__enter__()
        patient = Patient()
        url = f"{receiver.url}?to={ADDRESSEE}"
        alerts = Alerts(restate.server.admin, webhook_url=url, webhook_key=key, killed_within=SOON, **settings)
        env = await restate.serve(patient.service, alerts)
        scenes.append(Scene(patient, alerts, receiver, env))
        return scenes[-1]

    yield start
    for each in scenes:
        await each.close()
    await restate.close()  # before its receiver is gone
    for each in receivers:
        each.__exit__(None, None, None)


def summary(news: list[News]) -> Counter[tuple[str, str]]:
    return Counter((each.event, each.alert.trouble.value) for each in news)


async def test_trouble_is_told_once_signed_and_listed_until_it_is_over(scene):
    refusals = iter([503, 302])
    on = await scene(lambda _: next(refusals, OK))
    paused = await on.ingress.send(on.patient.target())
    killed = await on.ingress.send(on.patient.target())
    await on.until_seen(f"paused/{paused}", f"paused/{killed}")
    await on.look()
    news = await on.told(2)
    assert {(each.event, each.alert.id) for each in news} == {
        ("alert.raised", f"paused/{paused}"),
        ("alert.raised", f"paused/{killed}"),
    }
    assert all("the wire is cut" in each.alert.reason for each in news)
    listed = (await on.listed()).open
    assert {alert.invocation for alert in listed} == {paused, killed}
    assert all(alert.since is not None and alert.handler == "go" for alert in listed)

    on.patient.works.set()
    await on.admin.act(paused, "resume")
    await on.admin.act(killed, "kill")

    async def over() -> bool:
        seen = await on.seen()
        return f"paused/{paused}" not in seen and f"killed/{killed}" in seen

    await eventually(over, what="end of the pause, and a kill")
    await on.look()
    news = await on.told(5)
    assert summary(news) == {("alert.raised", "paused"): 2, ("alert.over", "paused"): 2, ("alert.raised", "killed"): 1}
    assert [alert.id for alert in (await on.listed()).open] == [f"killed/{killed}"]
    assert len(set(on.receiver.ids(on.name))) == 5


async def test_one_that_fails_again_and_again_is_told_once_though_it_runs_when_it_is_looked_at(scene):
    on = await scene(retries=3)
    invocation = await on.ingress.send(on.patient.target("go_on"))
    name = f"backing_off/{invocation}"
    await on.until_seen(name)
    for _ in range(3):
        assert await asyncio.to_thread(on.patient.trying.wait, 10)
        rows = await on.admin.query(f"select status from sys_invocation where id = {sql_text(invocation)}")
        assert name in await on.seen(), rows
        await on.look()
    (news,) = await on.told(1)
    assert (news.event, news.alert.id) == ("alert.raised", name)
    assert "the wire is cut, again" in news.alert.reason

    await on.admin.act(invocation, "kill")
    await on.until_seen(f"killed/{invocation}")
    await on.look()
    assert summary(await on.told(3)) == {
        ("alert.raised", "backing_off"): 1,
        ("alert.over", "backing_off"): 1,
        ("alert.raised", "killed"): 1,
    }


@pytest.mark.restate_modes("http2")
async def test_hundreds_are_one_piece_of_news_and_all_of_them_are_listed(scene):
    on = await scene()
    ids = await asyncio.gather(*(on.ingress.send(on.patient.target()) for _ in range(220)))
    await on.until_seen(*(f"paused/{each}" for each in ids))
    await on.look()
    (news,) = await on.told(1)
    many = news.alert
    assert (news.event, many.id, many.number) == ("alert.raised", f"paused/many/{on.name}", 220)
    assert len(many.some) == FEW
    assert set(many.some) <= set(ids)
    assert "the wire is cut" in many.reason
    assert {alert.invocation for alert in (await on.listed()).open} == set(ids)

    # What goes, and what comes, is not told each time. Killed, they are another kind of trouble.
    for each in ids[:20]:
        await on.admin.act(each, "kill")
    later = await on.ingress.send(on.patient.target())
    await on.until_seen(f"paused/{later}", *(f"killed/{each}" for each in ids[:20]))
    await on.look()
    news = await on.told(2)
    assert (news[1].alert.id, news[1].alert.number) == (f"killed/many/{on.name}", 20)
    assert len((await on.listed()).open) == 221

    on.patient.works.set()
    left = [*ids[20:], later]
    await asyncio.gather(*(on.admin.act(each, "resume") for each in left))

    async def all_resumed() -> bool:
        return not {f"paused/{each}" for each in left} & await on.seen()

    await eventually(all_resumed, what="end of every pause", within=30)
    await on.look()
    news = await on.told(3)
    assert (news[2].event, news[2].alert.id) == ("alert.over", many.id)
    assert {alert.trouble.value for alert in (await on.listed()).open} == {"killed"}


@pytest.mark.restate_modes("http2")
async def test_a_receiver_that_hangs_for_one_holds_up_nothing_and_is_given_up_visibly(scene, monkeypatch, caplog):
    monkeypatch.setattr(alerts_module, "_POSTED_WITHIN", 0.2)
    monkeypatch.setattr(alerts_module, "_TOLD_WITHIN", timedelta(seconds=1))
    hung: list[str] = []

    def answer(news: News) -> int:
        if news.alert.invocation not in hung:
            return OK
        on.receiver.ended.wait(30)
        raise ConnectionError

    on = await scene(answer)
    hung.append(await on.ingress.send(on.patient.target()))
    heard = await on.ingress.send(on.patient.target())
    await on.until_seen(f"paused/{hung[0]}", f"paused/{heard}")
    before = Counter(ALERTS._counts)
    await on.look()
    (news,) = await on.told(1)
    assert news.alert.invocation == heard
    assert len(set(on.receiver.ids(on.name))) == 2
    assert ALERTS._counts["paused", "given_up"] - before["paused", "given_up"] == 1
    (line,) = (each for each in caplog.records if "sentinel.webhook_failed" in each.getMessage())
    assert f"paused/{hung[0]}" in line.getMessage()


@pytest.mark.restate_modes("http2")
async def test_the_address_of_a_webhook_that_refuses_is_not_told_since_it_may_hold_a_secret(scene, monkeypatch, caplog):
    monkeypatch.setattr(alerts_module, "_TOLD_WITHIN", timedelta(seconds=1))
    on = await scene(lambda _: 500)
    paused = await on.ingress.send(on.patient.target())
    await on.until_seen(f"paused/{paused}")
    await on.look()
    await on.told(0)
    said = [each.getMessage() for each in caplog.records if "sentinel.webhook_failed" in each.getMessage()]
    (line,) = (each for each in said if f"paused/{paused}" in each)
    assert "the webhook answers 500" in line
    assert ADDRESSEE not in caplog.text


class Teller:
    """Alerts in a process of their own."""

    def __init__(self, admin: AdminClient, folder: Path, key: PrivateKey) -> None:
        key.save(folder / "key.pem")
        port, self.webhook_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self._admin = admin
        self._log = folder / "log"
        webhook = f"http://127.0.0.1:{self.webhook_port}/"
        self._command = [sys.executable, PROCESS, str(port), admin.url, webhook, folder / "key.pem"]
        self.processes: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self.processes.append(subprocess.Popen(self._command, stdout=log, stderr=log))  # noqa: ASYNC220 - a moment
        async with httpx.AsyncClient() as http:

            async def ready() -> bool:
                assert self.processes[-1].poll() is None, self._log.read_text()
                try:
                    return (await http.get(f"{self.url}/ready")).is_success
                except httpx.TransportError:
                    return False

            await eventually(ready, what="process that is ready")

    def kill(self) -> None:
        self.processes[-1].kill()
        self.processes[-1].wait()

    async def telling(self, because: str = "") -> list[dict[str, Any]]:
        return await self._admin.query(
            f"select id from sys_invocation where target_service_name = '{RELAY}' and status != 'completed' "
            f"and coalesce(last_failure, '') like '%{because}%'"
        )

    async def close(self) -> None:
        self.kill()
        for deployment in await self._admin.deployments():
            if str(deployment["uri"]).rstrip("/") == self.url:
                await self._admin.remove_deployment(deployment["id"])


@pytest.mark.restate_modes("http2")
async def test_killed_before_and_after_the_post_it_tells_all_the_same_and_the_receiver_can_tell(restate, tmp_path):
    key = PrivateKey.generate()
    patient = Patient()

    def kill_first(news: News) -> int:
        if news.alert.service == patient.name and len(teller.processes) == 2 and teller.processes[-1].poll() is None:
            teller.kill()  # it was told, and will never know
            raise ConnectionError
        return OK

    env = await restate.serve(patient.service)
    async with AdminClient(env.admin) as admin, IngressClient(env.ingress) as ingress:
        teller = Teller(admin, tmp_path, key)
        try:
            await teller.start()
            await admin.register(teller.url)
            paused = await ingress.send(patient.target())

            async def is_paused() -> bool:
                rows = await admin.query(f"select status from sys_invocation where id = {sql_text(paused)}")
                return bool(rows) and rows[0]["status"] == "paused"

            await eventually(is_paused, what="pause")
            await ingress.call(look_target, key=KEY)
            await eventually(lambda: refused(teller), what="post to a receiver that is absent")
            teller.kill()

            with receiving(Receiver(key, kill_first), teller.webhook_port) as receiver:
                await teller.start()
                await eventually(lambda: ended(teller), what="kill after the post", within=30)
                await teller.start()

                async def told() -> bool:
                    return len(receiver.took(patient.name)) == 1 and not await teller.telling()

                await eventually(told, what="news, and nothing more to tell", within=30)
                assert len(receiver.ids(patient.name)) == 2
                assert len(set(receiver.ids(patient.name))) == 1
        finally:
            await teller.close()


async def refused(teller: Teller) -> bool:
    return bool(await teller.telling("ConnectError"))


async def ended(teller: Teller) -> bool:
    return teller.processes[-1].poll() is not None
