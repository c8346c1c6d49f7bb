"""The thread pool of blocking functions."""

from __future__ import annotations

import asyncio
import threading

import pytest

from perdure.errors import ConfigurationError
from perdure.observability.instruments import prometheus_text
from perdure.serving import build_app, threads
from perdure.serving.threads import DEFAULT_THREADS, WatchedPool, thread_limit
from tests.support import eventually
from tests.unit.serving.test_app import ask, service


@pytest.mark.parametrize(("text", "limit"), [("", DEFAULT_THREADS), ("1", 1), ("4096", 4096)])
def test_limit_is_a_setting(text: str, limit: int):
    assert thread_limit({"PERDURE_THREADS": text}) == limit


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "٣", "9" * 5000, " 4"])
def test_reject_invalid_limit(text: str):
    with pytest.raises(ConfigurationError, match="PERDURE_THREADS="):
        thread_limit({"PERDURE_THREADS": text})


async def test_used_up_threads_are_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    monkeypatch.setenv("PERDURE_THREADS", "2")
    monkeypatch.setattr(threads, "LONGEST_WAIT", 0.05)
    app = build_app(service())
    assert (await ask(app, "/ready"))[0] == 200

    free = threading.Event()
    blocked = [asyncio.create_task(asyncio.to_thread(free.wait, 20)) for _ in range(3)]

    async def unready() -> bool:
        return (await ask(app, "/ready"))[0] == 503

    await eventually(unready, what="unready process")
    _, body = await ask(app, "/ready")
    assert body["checks"]["threads"].startswith("all 2 threads are busy, and 1 blocking functions wait for one")
    assert (await ask(app, "/health"))[0] == 200
    text = prometheus_text()[0].decode()
    assert "perdure_threads_waiting 1.0" in text
    assert "perdure_threads_busy 2.0" in text

    await eventually(lambda: "threads used up" in caplog.text, what="warning")
    free.set()
    await asyncio.gather(*blocked)
    await eventually(lambda: "threads are free again" in caplog.text, what="message")
    assert (await ask(app, "/ready"))[0] == 200


async def test_cancelled_function_waits_no_longer():
    pool = WatchedPool(1, asyncio.get_running_loop())
    free = threading.Event()
    running = pool.submit(free.wait, 20)
    waiting = pool.submit(free.wait, 20)
    assert waiting.cancel()
    assert pool.waiting == 0
    free.set()
    assert running.result(20)
    pool.shutdown()
    assert pool.busy == 0
