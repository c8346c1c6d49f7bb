"""Alerts on a real engine: each trouble is told once, signed, however bad the receiver, and its end as well."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from perdure import AdminClient, IngressClient
from perdure._runtime.ports import free_ports
from perdure.alerts import service as alerts_module
from perdure.alerts.conditions import MAX_SINGLE_ALERTS, AlertNotification
from perdure.alerts.service import ALERT_DISPATCHER, ALERTS_KEY, list_alerts, read_alerts, scan_target
from perdure.engine.admin import sql_text
from perdure.observability.metrics import ALERTS
from perdure.security import PrivateKey
from perdure.testing import Restate
from tests.integration.alert_receiver import OK, Receiver, receiving
from tests.integration.alert_scene import Patient, Start, scenes_of
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")

PROCESS = Path(__file__).with_name("alerting_process.py")


@pytest.fixture
async def scene(restate: Restate) -> AsyncIterator[Start]:
    async with scenes_of(restate) as start:
        yield start


def summary(news: list[AlertNotification]) -> Counter[tuple[str, str]]:
    return Counter((each.event, each.alert.condition.value) for each in news)


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
    assert summary(news) == {
        ("alert.raised", "paused"): 2,
        ("alert.resolved_at", "paused"): 2,
        ("alert.raised", "killed"): 1,
    }
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
        ("alert.resolved_at", "backing_off"): 1,
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
    assert len(many.some) == MAX_SINGLE_ALERTS
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
    assert (news[2].event, news[2].alert.id) == ("alert.resolved_at", many.id)
    assert {alert.condition.value for alert in (await on.listed()).open} == {"killed"}


@pytest.mark.restate_modes("http2")
async def test_a_receiver_that_hangs_for_one_holds_up_nothing_and_is_given_up_visibly(scene, monkeypatch, caplog):
    monkeypatch.setattr(alerts_module, "_POSTED_WITHIN", 0.2)
    monkeypatch.setattr(alerts_module, "_TOLD_WITHIN", timedelta(seconds=1))
    hung: list[str] = []

    def answer(news: AlertNotification) -> int:
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
    assert ALERTS._counts["paused", "exhausted"] - before["paused", "exhausted"] == 1
    (line,) = (each for each in caplog.records if "reconciler.webhook_failed" in each.getMessage())
    assert f"paused/{hung[0]}" in line.getMessage()


@pytest.mark.restate_modes("http2")
async def test_what_another_version_remembers_holds_up_no_news(scene):
    on = await scene()
    names = ("alert/paused/inv_of_another_version", "alert/paused/inv_more", f"many/paused/many/{on.name}")
    body = {"object_key": ALERTS_KEY, "new_state": {name: list(b'{"trouble": "of another version"}') for name in names}}
    async with httpx.AsyncClient() as http:
        (await http.post(f"{on.admin.url}/services/Alerts/state", json=body)).raise_for_status()
    listed = await on.ingress.call(list_alerts, key=ALERTS_KEY)
    assert listed.more == 2  # of invocations; what was told of many counts none beyond those
    assert await read_alerts(on.admin) == listed
    paused = await on.ingress.send(on.patient.target())
    await on.until_seen(f"paused/{paused}")
    await on.look()
    (news,) = await on.told(1)
    assert news.alert.id == f"paused/{paused}"
    assert (await on.ingress.call(list_alerts, key=ALERTS_KEY)).more == 0


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
            f"select id from sys_invocation where target_service_name = '{ALERT_DISPATCHER}' and status != 'completed' "
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

    def kill_first(news: AlertNotification) -> int:
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
            await ingress.call(scan_target, key=ALERTS_KEY)
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
