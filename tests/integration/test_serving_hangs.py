"""Hangs of a serving process: the process ends, and its calls complete in the next one."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure.serving.watchdog import GIL_HELD_EXIT_CODE, HANG_EXIT_CODE
from perdure.testing import Mode
from perdure.testing.plugin import RestateServers
from tests.integration.served_process import Service, service_of
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

HANG_LIMIT = 3.0
BLOCKED = "the event loop was blocked: ending this process; the stacks of its threads are on stderr"
STOP_TOO_LONG = "the stop took too long: ending this process; the stacks of its threads are on stderr"


@pytest.fixture
async def service(restate_servers: RestateServers, tmp_path: Path) -> AsyncIterator[Service]:
    async with service_of(restate_servers.for_mode(Mode.HTTP2), tmp_path) as service:
        yield service


async def start(service: Service, limit: float = HANG_LIMIT, grace: float = 10) -> None:
    await service.start(grace, PERDURE_HANG_LIMIT=f"{limit:g}")
    await service.admin.register(service.url)


async def begin_hang(service: Service, kind: str) -> None:
    await service.send("hang_once", kind)
    await eventually(lambda: service.steps() == [f"begin {kind}"], what="hanging handler")


def returncode(service: Service) -> int:
    assert service.process is not None
    assert service.process.returncode is not None
    return service.process.returncode


@pytest.mark.parametrize(
    ("kind", "code", "frame"),
    [
        ("blocking_call", HANG_EXIT_CODE, "time.sleep(600)"),
        ("deadlock", HANG_EXIT_CODE, "with lock:"),
        ("gil_held", GIL_HELD_EXIT_CODE, "serving_process.py"),
    ],
)
async def test_hang_ends_process_and_call_completes(service: Service, kind: str, code: int, frame: str):
    await start(service)
    await begin_hang(service, kind)
    began = time.monotonic()

    await service.ended()

    assert returncode(service) == code
    assert time.monotonic() - began < HANG_LIMIT + 15
    assert frame in service.log.read_text(), "the stack of the hang is logged"
    await service.start()
    await eventually(service.all_done, what="end of the call")
    assert service.steps() == [f"begin {kind}"] * 2


async def test_hang_is_logged_with_limit(service: Service):
    await start(service)
    await begin_hang(service, "blocking_call")
    await service.ended()

    line = service.log_line(BLOCKED)
    assert line["level"] == "critical"
    assert (line["limit_seconds"], line["setting"]) == (HANG_LIMIT, "PERDURE_HANG_LIMIT")


async def test_blocked_stderr_ends_process(service: Service):
    await service.start(PERDURE_HANG_LIMIT="1", stderr_unread=True)
    await service.admin.register(service.url)
    await begin_hang(service, "stderr")

    await service.ended()

    assert returncode(service) == HANG_EXIT_CODE


@pytest.mark.parametrize("kind", ["blocking_call", "deadlock"])
async def test_stop_ends_hanging_process(service: Service, kind: str):
    await start(service, limit=600, grace=1)
    await begin_hang(service, kind)

    took = await service.stop()

    assert returncode(service) == HANG_EXIT_CODE
    assert 1 < took < 15
    assert service.log_line(STOP_TOO_LONG)


async def test_second_signal_ends_hanging_process(service: Service):
    await start(service, limit=100, grace=600)
    await begin_hang(service, "deadlock")
    assert service.process is not None
    service.process.send_signal(signal.SIGINT)

    assert await service.stop() < 15

    assert returncode(service) == HANG_EXIT_CODE


async def test_busy_loop_that_turns_is_spared(service: Service):
    await start(service)

    await service.send("busy", 5)

    await eventually(lambda: service.steps() == ["end"], what="end of the handler")
    assert await service.stop() < 15
    assert returncode(service) == 0


async def test_drain_longer_than_limit_is_spared(service: Service):
    await start(service, limit=1, grace=60)
    await service.send("slow_step", 8)
    await eventually(lambda: service.steps() == ["begin"], what="running step")

    assert await service.stop() > 1

    assert returncode(service) == 0
    assert service.steps() == ["begin", "end"]


async def test_stopped_process_continues(service: Service):
    """The stop exceeds the limit, but not the timer for a held GIL, which is a third longer."""
    await start(service, limit=9)
    process = service.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    continues_at = time.monotonic() + 10
    await eventually(lambda: time.monotonic() > continues_at, what="end of the pause")

    process.send_signal(signal.SIGCONT)

    await eventually(service.ready, what="ready service")
    await service.send("three_steps", "after")
    await eventually(lambda: len(service.steps()) == 3, what="steps")
    assert await service.stop() < 15
    assert returncode(service) == 0


async def test_watchdog_can_be_turned_off(service: Service):
    await start(service, limit=0)
    await service.send("busy", 1)
    await eventually(lambda: service.steps() == ["end"], what="end of the handler")

    assert await service.stop() < 15

    assert returncode(service) == 0


async def test_failed_start_ends_watchdog(service: Service):
    service.spawn(PERDURE_HANG_LIMIT="1", PERDURE_THREADS="none")

    await service.ended()

    assert returncode(service) == 1
    assert "PERDURE_THREADS" in service.log_line("can't serve")["reason"]


async def test_invalid_limit_is_reported(service: Service):
    service.spawn(PERDURE_HANG_LIMIT="soon")

    await service.ended()

    assert returncode(service) == 1
    assert "PERDURE_HANG_LIMIT='soon'" in service.log_line("can't serve")["reason"]
