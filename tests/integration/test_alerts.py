"""Alerts on a real engine."""

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

from perdure import IngressClient
from perdure._runtime.ports import free_ports
from perdure.alerts import service as alerts_module
from perdure.alerts import webhook
from perdure.alerts.conditions import MAX_SINGLE_ALERTS, AlertNotification
from perdure.alerts.service import ALERT_DISPATCHER, ALERTS_KEY, list_alerts, read_alerts, scan_target
from perdure.engine.admin import AdminClient, sql_text
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


def summary(notifications: list[AlertNotification]) -> Counter[tuple[str, str]]:
    return Counter((each.event, each.alert.condition.value) for each in notifications)


async def test_alert_is_sent_once_and_resolved(scene):
    refusals = iter([503, 302])
    on = await scene(lambda _: next(refusals, OK))
    paused = await on.ingress.send(on.patient.target())
    killed = await on.ingress.send(on.patient.target())
    await on.until_detected(f"paused/{paused}", f"paused/{killed}")
    await on.scan()
    notifications = await on.notified(2)
    assert {(each.event, each.alert.id) for each in notifications} == {
        ("alert.raised", f"paused/{paused}"),
        ("alert.raised", f"paused/{killed}"),
    }
    assert all("the wire is cut" in each.alert.reason for each in notifications)
    listed = (await on.listed()).open
    assert {alert.invocation for alert in listed} == {paused, killed}
    assert all(alert.since is not None and alert.handler == "go" for alert in listed)

    on.patient.works.set()
    await on.admin.control_invocation(paused, "resume")
    await on.admin.control_invocation(killed, "kill")

    async def ended() -> bool:
        seen = await on.conditions()
        return f"paused/{paused}" not in seen and f"killed/{killed}" in seen

    await eventually(ended, what="end of the pause, and a kill")
    await on.scan()
    notifications = await on.notified(5)
    assert summary(notifications) == {
        ("alert.raised", "paused"): 2,
        ("alert.resolved", "paused"): 2,
        ("alert.raised", "killed"): 1,
    }
    assert [alert.id for alert in (await on.listed()).open] == [f"killed/{killed}"]
    assert len(set(on.receiver.ids(on.name))) == 5


async def test_repeated_failure_raises_one_alert(scene):
    on = await scene(retries=3)
    invocation = await on.ingress.send(on.patient.target("go_on"))
    name = f"backing_off/{invocation}"
    await on.until_detected(name)
    for _ in range(3):
        assert await asyncio.to_thread(on.patient.trying.wait, 10)
        rows = await on.admin.query(f"select status from sys_invocation where id = {sql_text(invocation)}")
        assert name in await on.conditions(), rows
        await on.scan()
    (notification,) = await on.notified(1)
    assert (notification.event, notification.alert.id) == ("alert.raised", name)
    assert "the wire is cut, again" in notification.alert.reason

    await on.admin.control_invocation(invocation, "kill")
    await on.until_detected(f"killed/{invocation}")
    await on.scan()
    assert summary(await on.notified(3)) == {
        ("alert.raised", "backing_off"): 1,
        ("alert.resolved", "backing_off"): 1,
        ("alert.raised", "killed"): 1,
    }


@pytest.mark.restate_modes("http2")
async def test_hundreds_of_invocations_raise_group_alert(scene):
    on = await scene()
    ids = await asyncio.gather(*(on.ingress.send(on.patient.target()) for _ in range(220)))
    await on.until_detected(*(f"paused/{each}" for each in ids))
    await on.scan()
    (notification,) = await on.notified(1)
    many = notification.alert
    assert (notification.event, many.id, many.count) == ("alert.raised", f"paused/many/{on.name}", 220)
    assert len(many.examples) == MAX_SINGLE_ALERTS
    assert set(many.examples) <= set(ids)
    assert "the wire is cut" in many.reason
    assert {alert.invocation for alert in (await on.listed()).open} == set(ids)

    # A group alert is not repeated for each invocation. A kill is another condition.
    for each in ids[:20]:
        await on.admin.control_invocation(each, "kill")
    later = await on.ingress.send(on.patient.target())
    await on.until_detected(f"paused/{later}", *(f"killed/{each}" for each in ids[:20]))
    await on.scan()
    notifications = await on.notified(2)
    assert (notifications[1].alert.id, notifications[1].alert.count) == (f"killed/many/{on.name}", 20)
    assert len((await on.listed()).open) == 221

    on.patient.works.set()
    left = [*ids[20:], later]
    await asyncio.gather(*(on.admin.control_invocation(each, "resume") for each in left))

    async def all_resumed() -> bool:
        return not {f"paused/{each}" for each in left} & await on.conditions()

    await eventually(all_resumed, what="end of every pause", within=30)
    await on.scan()
    notifications = await on.notified(3)
    assert (notifications[2].event, notifications[2].alert.id) == ("alert.resolved", many.id)
    assert {alert.condition.value for alert in (await on.listed()).open} == {"killed"}


@pytest.mark.restate_modes("http2")
async def test_hanging_receiver_blocks_no_other_alert(scene, monkeypatch, caplog):
    monkeypatch.setattr(webhook, "_TIMEOUT", 1.0)
    monkeypatch.setattr(alerts_module, "_SEND_FOR", timedelta(seconds=3))
    hung: list[str] = []

    def answer(notification: AlertNotification) -> int:
        if notification.alert.invocation not in hung:
            return OK
        on.receiver.ended.wait(30)
        raise ConnectionError

    on = await scene(answer)
    hung.append(await on.ingress.send(on.patient.target()))
    heard = await on.ingress.send(on.patient.target())
    await on.until_detected(f"paused/{hung[0]}", f"paused/{heard}")
    before = Counter(ALERTS._counts)
    await on.scan()
    (notification,) = await on.notified(1)
    assert notification.alert.invocation == heard
    assert len(set(on.receiver.ids(on.name))) == 2
    assert ALERTS._counts["paused", "exhausted"] - before["paused", "exhausted"] == 1
    (line,) = (each for each in caplog.records if "reconciler.webhook_failed" in each.getMessage())
    assert f"paused/{hung[0]}" in line.getMessage()


@pytest.mark.restate_modes("http2")
async def test_unreadable_state_blocks_no_alert(scene):
    on = await scene()
    names = ("alert/paused/inv_of_another_version", "alert/paused/inv_more", f"group/paused/many/{on.name}")
    body = {
        "object_key": ALERTS_KEY,
        "new_state": {name: list(b'{"condition": "of another version"}') for name in names},
    }
    async with httpx.AsyncClient() as http:
        (await http.post(f"{on.admin.url}/services/Alerts/state", json=body)).raise_for_status()
    listed = await on.ingress.call(list_alerts, key=ALERTS_KEY)
    assert listed.more == 2  # a group alert adds none
    assert await read_alerts(on.admin) == listed
    paused = await on.ingress.send(on.patient.target())
    await on.until_detected(f"paused/{paused}")
    await on.scan()
    (notification,) = await on.notified(1)
    assert notification.alert.id == f"paused/{paused}"
    assert (await on.ingress.call(list_alerts, key=ALERTS_KEY)).more == 0


class AlertingProcess:
    """`Alerts` in a separate process."""

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

    async def sending(self, because: str = "") -> list[dict[str, Any]]:
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
async def test_notification_survives_kill_of_sender(restate, tmp_path):
    key = PrivateKey.generate()
    patient = Patient()

    def kill_first(notification: AlertNotification) -> int:
        if (
            notification.alert.service == patient.name
            and len(process.processes) == 2
            and process.processes[-1].poll() is None
        ):
            process.kill()  # after it has received the request
            raise ConnectionError
        return OK

    env = await restate.serve(patient.service)
    async with AdminClient(env.admin) as admin, IngressClient(env.ingress) as ingress:
        process = AlertingProcess(admin, tmp_path, key)
        try:
            await process.start()
            await admin.register(process.url)
            paused = await ingress.send(patient.target())

            async def is_paused() -> bool:
                rows = await admin.query(f"select status from sys_invocation where id = {sql_text(paused)}")
                return bool(rows) and rows[0]["status"] == "paused"

            await eventually(is_paused, what="pause")
            await ingress.call(scan_target, key=ALERTS_KEY)
            await eventually(lambda: refused(process), what="post to a receiver that is absent")
            process.kill()

            with receiving(Receiver(key, kill_first), process.webhook_port) as receiver:
                await process.start()
                await eventually(lambda: ended(process), what="kill after the post", within=30)
                await process.start()

                async def told() -> bool:
                    return len(receiver.took(patient.name)) == 1 and not await process.sending()

                await eventually(told, what="one notification and no more to send", within=30)
                assert len(receiver.ids(patient.name)) == 2
                assert len(set(receiver.ids(patient.name))) == 1
        finally:
            await process.close()


async def refused(process: AlertingProcess) -> bool:
    return bool(await process.sending("ConnectError"))


async def ended(process: AlertingProcess) -> bool:
    return process.processes[-1].poll() is not None
