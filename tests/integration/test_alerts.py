"""Alerts on a real engine: each trouble is told once, signed, however often the receiver is down, and ends at last."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
import restate as sdk

from perdure import AdminClient, IngressClient, Target
from perdure.binding import handler
from perdure.saga.alerts import KEY, AlertList, Alerts, News, _signed, list_alerts, look_target, verify_alert
from perdure.security import PrivateKey
from perdure.security.keys import BadSignature
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2", "always_suspending")

TICK = timedelta(milliseconds=20)


class Receiver:
    """A webhook that is down for its first requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, dict[str, str]]] = []
        self.down = 2

    def news(self, key: PrivateKey, service: str) -> list[News]:
        return [
            news
            for body, headers in list(self.requests)
            if (news := verify_alert(body, headers, key.public)).alert.service == service
        ]


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.down -= 1
            if told.down < 0:
                told.requests.append((body, {name.lower(): value for name, value in self.headers.items()}))
            self.send_response(503 if told.down >= 0 else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield told, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join(10)


async def test_trouble_is_told_once_signed_and_listed_until_it_is_over(restate, receiver):
    told, url = receiver
    key = PrivateKey.generate()
    name = f"Fragile{uuid4().hex[:8]}"
    works = threading.Event()
    policy = sdk.InvocationRetryPolicy(
        initial_interval=TICK, max_interval=TICK, max_attempts=4, on_max_attempts="pause"
    )
    fragile = sdk.Service(name, invocation_retry_policy=policy)

    @handler(fragile)
    async def go(ctx: sdk.Context) -> str:
        if not works.is_set():
            raise OSError("the wire is cut")
        return "done"

    alerts = Alerts(restate.server.admin, webhook_url=url, webhook_key=key, killed_within=timedelta(minutes=1))
    env = await restate.serve(fragile, alerts)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        paused = await ingress.send(Target(name, "go", type(None), str))
        killed = await ingress.send(Target(name, "go", type(None), str))

        async def both_paused() -> bool:
            seen = await alerts.seen(admin)
            return {f"paused/{paused}", f"paused/{killed}"} <= seen

        await eventually(both_paused, what="two paused invocations")
        await ingress.call(look_target, key=KEY)
        await ingress.call(look_target, key=KEY)  # knows them already

        async def raised() -> list[News] | None:
            news = told.news(key, name)
            return news if len(news) >= 2 else None

        news = await eventually(raised, what="news of both", within=40)
        assert {(each.event, each.alert.id) for each in news} == {
            ("alert.raised", f"paused/{paused}"),
            ("alert.raised", f"paused/{killed}"),
        }
        listed: AlertList = await ingress.call(list_alerts, key=KEY)
        mine = [alert for alert in listed.open if alert.service == name]
        assert {alert.invocation for alert in mine} == {paused, killed}
        assert all(alert.since is not None and alert.handler == "go" for alert in mine)

        works.set()
        await admin.act(paused, "resume")
        await admin.act(killed, "kill")

        async def over() -> bool:
            seen = await alerts.seen(admin)
            return f"paused/{paused}" not in seen and f"killed/{killed}" in seen

        await eventually(over, what="end of the pause, and a kill")
        await ingress.call(look_target, key=KEY)

        async def all_told() -> list[News] | None:
            news = told.news(key, name)
            return news if len(news) >= 5 else None

        news = await eventually(all_told, what="five pieces of news", within=40)
        assert sorted((each.event, each.alert.trouble.value) for each in news) == [
            ("alert.over", "paused"),
            ("alert.over", "paused"),
            ("alert.raised", "killed"),
            ("alert.raised", "paused"),
            ("alert.raised", "paused"),
        ]
        listed = await ingress.call(list_alerts, key=KEY)
        assert [alert.id for alert in listed.open if alert.service == name] == [f"killed/{killed}"]
    assert len({headers["idempotency-key"] for _, headers in told.requests}) == len(told.requests)


def test_a_receiver_refuses_what_the_sentinel_did_not_sign():
    key, other = PrivateKey.generate(), PrivateKey.generate()
    body = (
        News.model_validate(
            {"event": "alert.raised", "alert": {"id": "x", "trouble": "paused", "invocation": "inv_1", "service": "S"}}
        )
        .model_dump_json()
        .encode()
    )
    headers = {"idempotency-key": "n", **_signed(key, "n", body)}
    assert verify_alert(body, headers, key.public).alert.service == "S"
    for changed, given, by, now in (
        (body.replace(b"inv_1", b"inv_2"), headers, key, None),
        (body, {**headers, "idempotency-key": "m"}, key, None),
        (body, headers, other, None),
        (body, {"idempotency-key": "n"}, key, None),
        (body, {**headers, "x-perdure-timestamp": "soon"}, key, None),
        (body, headers, key, datetime.now(UTC) + timedelta(minutes=6)),
    ):
        with pytest.raises(BadSignature):
            verify_alert(changed, given, by.public, now=now)
