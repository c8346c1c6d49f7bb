"""Supervision of a real platform on PostgreSQL: outages of its processes, its database and its ports."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from perdure._runtime.ports import free_ports
from perdure.dev import ENGINE, ENGINE_PROXY
from perdure.engine import LocatedEngine
from services.runtime.settings import DATABASE_OWNERS
from services.runtime.topology import CONSOLE
from tests.e2e.launched import Launched, environment, processes_of
from tests.postgres import Postgres, running_postgres
from tests.support import until
from tests.system.scenarios.scenarios import order

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server on a port; each data-plane service and the console have a database."""
    (port,) = free_ports(1)
    with running_postgres(port) as server:
        server.execute(*(f"CREATE DATABASE {name}" for name in (*DATABASE_OWNERS, CONSOLE)))
        yield server


@pytest.fixture(scope="module")
def platform(engine: LocatedEngine, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A platform that restarts a process after a short silence."""
    home = tmp_path_factory.mktemp("supervised") / "platform"
    env = {
        **environment(home, engine.path),
        **{f"PERDURE_{name.upper()}_DATABASE_URL": postgres.url(name) for name in DATABASE_OWNERS},
        "PERDURE_CONSOLE_DATABASE_URL": postgres.url(CONSOLE),
        "PERDURE_SILENCE_LIMIT": "PT10S",
    }
    with Launched(home, env).up() as launched:
        assert launched.confirmation()["status"] == "confirmed"
        yield launched
        assert launched.stop(signal.SIGTERM) == 0
    assert processes_of(home) == []


def send(platform: Launched, trip: str) -> None:
    body = order().model_dump(mode="json")
    httpx.post(f"{platform.ingress}/Trips/{trip}/run/send", json=body, trust_env=False, timeout=30).raise_for_status()


def completes(platform: Launched, trip: str) -> None:
    def completed() -> bool:
        try:
            answer = httpx.post(f"{platform.ingress}/Trips/{trip}/status", trust_env=False, timeout=30)
        except httpx.TransportError:
            return False
        return answer.is_success and bool(answer.json()["phase"] == "completed")

    platform.until(completed, f"end of {trip}")


def replaced(platform: Launched, name: str, pid: int) -> None:
    def is_replaced() -> bool:
        now = platform.pids().get(name, pid)
        return now != pid and f"{name} runs again as process {now}\n" in platform.out

    platform.until(is_replaced, f"new process of {name}")


def test_outage_of_database_ends_no_process(platform: Launched, postgres: Postgres):
    postgres.stop()
    address = f"127.0.0.1:{postgres.port}"
    before = platform.pids()
    send(platform, "database-down")
    for name in ("hotels", CONSOLE):
        os.kill(before[name], signal.SIGKILL)
    replaced(platform, "hotels", before["hotels"])  # it does not need its database to start
    platform.until(lambda: f"{CONSOLE} does not start, trying again" in platform.out, "failed start of the console")

    flights = f"http://127.0.0.1:{platform.env['PERDURE_FLIGHTS_PORT']}/ready"
    ready = httpx.get(flights, trust_env=False, timeout=30)
    assert ready.status_code == 503
    assert ready.json()["checks"]["database"] == f"the database at {address} refuses connections"
    for name in ("flights", CONSOLE):
        log = platform.home / "logs" / f"{name}.log"
        until(lambda log=log: f"{address} refuses connections" in log.read_text(), f"cause in {log}")
    assert f"console: the database at {address} refuses connections\n" in platform.out

    postgres.start()
    replaced(platform, CONSOLE, before[CONSOLE])
    completes(platform, "database-down")
    after = platform.pids()
    assert {name for name in before if after[name] != before[name]} == {"hotels", CONSOLE}


def test_taken_port_delays_only_its_process(platform: Launched):
    before = platform.pids()
    port = int(platform.env["PERDURE_PAYMENTS_PORT"])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(before["payments"], signal.SIGKILL)

        def is_taken() -> bool:
            try:
                taken.bind(("127.0.0.1", port))
                taken.listen()
            except OSError:
                return False
            return True

        until(is_taken, "free port")  # long before the next process needs it
        platform.until(lambda: "payments does not start, trying again" in platform.out, "failed start")
        assert f"port {port} on 127.0.0.1 is taken" in platform.out
        send(platform, "port-taken")
        os.kill(before["flights"], signal.SIGKILL)
        replaced(platform, "flights", before["flights"])
    replaced(platform, "payments", before["payments"])
    completes(platform, "port-taken")


def test_stopped_processes_are_replaced(platform: Launched):
    before = platform.pids()
    names = {"orchestrator", ENGINE, ENGINE_PROXY}
    began = time.monotonic()
    for name in names:
        os.kill(before[name], signal.SIGSTOP)
    for name in names:
        replaced(platform, name, before[name])
        assert f"{name}: process {before[name]} did not answer for 10 s and was ended by SIGKILL" in platform.out
    assert time.monotonic() - began < 45
    send(platform, "stopped")
    completes(platform, "stopped")
    after = platform.pids()
    assert {name for name in before if after[name] != before[name]} == names


def test_killed_process_is_replaced_at_once(platform: Launched):
    before = platform.pids()
    for name in (ENGINE, "saga"):
        os.kill(before[name], signal.SIGKILL)
    for name in (ENGINE, "saga"):
        replaced(platform, name, before[name])
    send(platform, "killed")
    completes(platform, "killed")
