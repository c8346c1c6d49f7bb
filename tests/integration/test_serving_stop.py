"""Stop of a serving process: running side effects finish or are retried, and the process ends."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure._runtime.ports import reserve
from perdure.testing import Mode
from perdure.testing.plugin import RestateServers
from tests.integration.served_process import Service, service_of
from tests.support import eventually


@pytest.fixture
async def service(restate_servers: RestateServers, tmp_path: Path) -> AsyncIterator[Service]:
    async with service_of(restate_servers.for_mode(Mode.HTTP2), tmp_path) as service:
        yield service


@pytest.mark.parametrize("http1", [False, True], ids=["http2", "request_response"])
async def test_no_step_repeats_on_stop_under_load(service: Service, http1: bool):
    await service.start()
    await service.admin.register(service.url, use_http_11=http1)
    early = [service.send("three_steps", f"early-{n}") for n in range(200)]
    await asyncio.gather(*early)
    await eventually(lambda: len(service.steps()) >= 100, what="hundred steps")

    late = asyncio.gather(*(service.send("three_steps", f"late-{n}") for n in range(100)))
    await service.stop()
    await late

    assert service.process is not None
    assert service.process.returncode == 0
    assert len(service.steps()) < 900, "the stop came too late to test anything"
    assert await service.unfinished() > 0
    await service.start()
    await eventually(service.all_done, what="end of all invocations")
    counts = Counter(service.steps())
    assert [step for step, count in counts.items() if count > 1] == []
    assert len(counts) == 900


async def test_waiting_handler_is_suspended_and_resumed_elsewhere(service: Service):
    await service.start()
    await service.admin.register(service.url)
    await service.send("sleeper", 8)
    await eventually(service.sleeps, what="waiting handler")

    await service.stop()
    assert service.steps() == ["before"], "a handler that only waits holds nothing up"

    await service.start()
    await eventually(service.all_done, what="end of the handler")
    assert service.steps() == ["before", "after"]


@pytest.mark.parametrize("handler", ["slow_step", "blocking_step"], ids=["coroutine", "thread"])
async def test_long_step_is_abandoned_and_retried(service: Service, handler: str):
    await service.start(grace=1)
    await service.admin.register(service.url)
    await service.send(handler, 30)
    await eventually(lambda: service.steps() == ["begin"], what="running step")

    took = await service.stop()

    assert service.process is not None
    assert service.process.returncode == 0
    assert took >= 1
    assert service.steps() == ["begin"]
    assert service.log_line("attempts abandoned after the grace time; the engine retries them")["attempts"] == {
        f"StoppedWork/{handler}": 1
    }
    assert service.journal.read_text().splitlines()[-1] == "closed", "resources are cleaned up"
    await service.start(grace=0)
    await eventually(lambda: service.steps() == ["begin", "begin"], what="retry of the step")
    await service.stop()


async def test_second_signal_ends_grace_time(service: Service):
    await service.start(grace=60)
    await service.admin.register(service.url)
    await service.send("slow_step", 60)
    await eventually(lambda: service.steps() == ["begin"], what="running step")
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    await eventually(service.draining, what="drain")

    assert await service.stop() < 4

    assert service.process.returncode == 0


async def test_draining_process_refuses_attempts(service: Service):
    await service.start(grace=60)
    await service.admin.register(service.url)
    await service.send("slow_step", 60)
    await eventually(lambda: service.steps() == ["begin"], what="running step")
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    await eventually(service.draining, what="drain")

    attempt = await service.http.post(f"{service.url}/invoke/StoppedWork/three_steps", content=b"")
    health = await service.http.get(f"{service.url}/health")

    assert attempt.status_code == 503
    assert health.status_code == 200
    await service.stop()


async def test_ctrl_c_stops_process(service: Service):
    await service.start()

    assert await service.stop(signal.SIGINT) < 3

    assert service.process is not None
    assert service.process.returncode == 0
    assert service.journal.read_text().splitlines() == ["opened", "closed"]


async def test_signal_during_start_ends_process(service: Service):
    service.spawn(STUCK_WHILE="opening")
    await eventually(lambda: service.journal.read_text() == "opened\n", what="start")

    assert await service.stop() < 3

    assert service.process is not None
    assert service.process.returncode == 0
    assert service.log_line("stop requested during the start")


async def test_hanging_clean_up_is_cut_off(service: Service):
    await service.start(STUCK_WHILE="closing")

    assert await service.stop() < 6

    assert service.process is not None
    assert service.process.returncode == 0
    assert service.log_line("clean-up timed out")


async def test_taken_port_is_reported(service: Service):
    with reserve("127.0.0.1", service.port, "port") as holder:
        holder.listen()
        service.spawn()
        await service.ended()

    assert service.process is not None
    assert service.process.returncode == 1
    reason = service.log_line("can't serve")["reason"]
    assert f"port {service.port} on 127.0.0.1 is taken" in reason
    assert service.journal.read_text() == "", "nothing was opened"


async def test_two_servers_never_share_a_port(service: Service):
    """Granian sets SO_REUSEPORT, so the kernel would distribute connections between both servers."""
    await service.start()
    first = service.process
    assert first is not None
    service.spawn()
    await service.ended()

    assert service.process is not None
    assert service.process.returncode == 1
    service.process = first
    assert await service.ready()


async def test_restart_after_kill_resumes_work(service: Service):
    await service.start()
    await service.admin.register(service.url)
    await service.send("sleeper", 8)
    await eventually(service.sleeps, what="waiting handler")
    assert service.process is not None
    service.process.kill()
    service.process.wait()

    await service.start()

    await eventually(service.all_done, what="end of the handler")
    assert service.steps() == ["before", "after"]
