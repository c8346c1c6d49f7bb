"""`perdure-platform run`, from the start to the stop of all processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from contextlib import closing

import httpx
import pytest

from perdure.dev import ENGINE, ENGINE_PROXY
from perdure.dev.pidfiles import started_at
from services.runtime.settings import DATABASE_OWNERS
from services.runtime.topology import CONSOLE, SERVICES
from tests.e2e.launched import Launched, command, environment, processes_of
from tests.support import until
from tests.system.scenarios.scenarios import order

NAMES = {ENGINE, ENGINE_PROXY, CONSOLE, *(spec.name for spec in SERVICES)}


def ask(launched: Launched, path: str, body: object = None) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=30) as http:
        return http.post(f"{launched.ingress}{path}", json=body) if body else http.post(f"{launched.ingress}{path}")


def one_sentence(text: str) -> str:
    assert text.startswith("perdure-platform: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text


@pytest.mark.timeout(600)
def test_next_run_continues_after_kill(home, engine):
    env = environment(home, engine.path)
    expensive = order(amount_minor=250_000).model_dump(mode="json")
    slow = order(hotel="Sloth").model_dump(mode="json")

    with Launched(home, env).up() as first:
        assert f"restate-server {engine.version} from RESTATE_SERVER_BIN ({engine.path})" in first.out
        booked = first.confirmation()
        assert booked["status"] == "confirmed"
        assert "  40%  running: hotel (done: order, flight)" in first.out or "completed" in first.out
        assert first.out.index("the platform is up") < first.out.index("booking trip")
        assert first.pids().keys() == NAMES
        for pid in first.pids().values():
            assert started_at(pid) is not None
            assert os.getsid(pid) == pid, "Ctrl-C in a terminal must not reach it"

        for_perdure = first.line("export ")
        assert f"PERDURE_INGRESS_URL=http://127.0.0.1:{env['PERDURE_INGRESS_PORT']} " in for_perdure
        assert f"PERDURE_ADMIN_URL=http://127.0.0.1:{env['PERDURE_ADMIN_PORT']} " in for_perdure
        assert "console admin --name you@example.com --role approver --role operator\n" in first.out

        if shutil.which("curl"):
            printed = subprocess.run(["/bin/sh", "-c", first.line("curl ")], capture_output=True, text=True, check=True)
            assert json.loads(printed.stdout)["status"] == "confirmed"
            assert json.loads(printed.stdout)["trip_id"] != booked["trip_id"]

        again = command("run", env=env)
        assert again.returncode == 1
        assert f"run (process {first.process.pid}) already runs in {home}" in one_sentence(again.stderr)

        registered = command("register", env=env)
        assert registered.returncode == 0, registered.stderr
        assert [line.split()[1] for line in registered.stdout.splitlines()] == [spec.name for spec in SERVICES]

        ask(first, "/Trips/waits/run/send", expensive).raise_for_status()
        until(lambda: ask(first, "/Trips/waits/status").json()["current_step"] == "approval", "wait for approval")

        killed = first.pids()["hotels"]
        os.kill(killed, signal.SIGKILL)
        first.until(lambda: "hotels runs again" in first.out, "restart of the killed service")
        assert f"hotels: process {killed} was ended by SIGKILL; restarting it" in first.out

        os.kill(first.pids()[ENGINE_PROXY], signal.SIGKILL)
        first.until(lambda: f"{ENGINE_PROXY} runs again" in first.out, "restart of the killed proxy")

        ask(first, "/Trips/slow/run/send", slow).raise_for_status()
        until(lambda: ask(first, "/Trips/slow/status").json()["current_step"] == "hotel", "trip in the middle")
        first.process.kill()
        first.process.wait()
        left = first.pids()
        assert left.keys() == NAMES
        assert all(started_at(pid) is not None for pid in left.values())

        moved = environment(home, engine.path)
        with Launched(home, moved).up() as second:
            assert f"hotels (process {left['hotels']})" in second.line(
                "stopping the remaining processes of an earlier run"
            )
            assert [pid for pid in left.values() if started_at(pid) is not None] == []
            assert second.confirmation()["trip_id"] != booked["trip_id"]
            assert ask(second, f"/Trips/{booked['trip_id']}/status").json()["phase"] == "completed"
            # The trips of the first run continue, although every service has a new port.
            until(lambda: ask(second, "/Trips/slow/status").json()["phase"] == "completed", "end of the slow trip")
            decision = {"actor": "grace@example.com", "reason": "fine"}
            ask(second, "/Approvals/waits/approve", decision).raise_for_status()
            until(lambda: ask(second, "/Trips/waits/status").json()["phase"] == "completed", "end of the waiting trip")
            audit_while_up = command("audit", "--settled", env=moved)
            assert audit_while_up.returncode == 0, audit_while_up.stdout
            assert "intact (1 checked)" in audit_while_up.stdout

            pids = second.pids()
            assert second.stop(signal.SIGINT) == 0
            assert second.err == ""
            assert [pid for pid in pids.values() if started_at(pid) is not None] == []
            assert list((home / "run").glob("*.pid")) == []
    assert processes_of(home) == []

    audit_while_down = command("audit", "--settled", env=moved)
    assert audit_while_down.returncode == 0
    *same, remark, trips = audit_while_down.stdout.splitlines()
    assert [*same, trips] == [line for line in audit_while_up.stdout.splitlines() if "trips-approved" not in line]
    assert "approvals were NOT compared with 1 confirmed trips" in remark
    with closing(sqlite3.connect(home / "data" / "flights.db")) as database:
        database.execute("UPDATE flights SET seats_left = seats_left - 1 WHERE number = 'PD100'")
        database.commit()
    broken = command("audit", env=moved)
    assert broken.returncode == 1
    assert "BROKEN  inventory: " in broken.stdout


def test_report_taken_port_before_start(home, engine):
    env = environment(home, engine.path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(env["PERDURE_HOTELS_PORT"])))
        taken.listen()
        result = command("run", env=env)
    assert result.returncode == 1
    sentence = one_sentence(result.stderr)
    assert f"port {env['PERDURE_HOTELS_PORT']} on 127.0.0.1 is taken" in sentence
    assert "PERDURE_HOTELS_PORT" in sentence
    assert not (home / "data").exists()


def test_name_missing_tools_to_install(home, tmp_path):
    (tmp_path / "bin").mkdir()
    env = {**environment(home, None), "PATH": str(tmp_path / "bin")}
    result = command("run", env=env)
    assert result.returncode == 1
    sentence = one_sentence(result.stderr)
    assert "npm" in sentence
    assert "RESTATE_SERVER_BIN" in sentence
    assert not (home / "data").exists()


def test_signal_during_installation_ends_npm(home, tmp_path):
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text(f"#!/bin/sh\n: > {tmp_path}/installing\nexec /bin/sleep 60\n")
    npm.chmod(0o755)
    env = {**environment(home, None), "PATH": str(tmp_path / "bin")}
    with Launched(home, env) as launched:
        launched.until((tmp_path / "installing").exists, "npm")
        assert launched.stop(signal.SIGTERM, within=10) == 143
        assert processes_of(home) == []


@pytest.mark.timeout(240)
def test_failed_registration_stops_all_processes(home, engine, tmp_path):
    # This engine reaches no service, since its requests go through a missing proxy.
    wrapper = tmp_path / "restate-server"
    wrapper.write_text(f'#!/bin/sh\nRESTATE_HTTP_PROXY=http://127.0.0.1:9 exec {engine.path} "$@"\n')
    wrapper.chmod(0o755)
    result = command("run", env=environment(home, wrapper), within=200)
    assert result.returncode == 1, result.stdout
    assert "flights at http://127.0.0.1:" in one_sentence(result.stderr)
    assert "could not be registered" in result.stderr
    assert list((home / "run").glob("*.pid")) == []
    assert processes_of(home) == []


@pytest.mark.timeout(240)
def test_failed_service_shows_log_and_stops_platform(home, engine):
    env = {**environment(home, engine.path), "PERDURE_ORCHESTRATOR_APPROVAL_LIMIT_MINOR": "much"}
    result = command("run", env=env)
    assert result.returncode == 1
    first, *log = result.stderr.splitlines()
    assert first.startswith("perdure-platform: orchestrator ended with code 1 before it was ready; the end of ")
    assert any("PERDURE_ORCHESTRATOR_APPROVAL_LIMIT_MINOR" in line for line in log)
    assert list((home / "run").glob("*.pid")) == []
    assert processes_of(home) == []


@pytest.mark.timeout(240)
def test_closed_terminal_during_start_stops_all_processes(home, engine):
    with Launched(home, environment(home, engine.path)) as launched:
        launched.until(lambda: len(launched.pids()) >= 3, "process")
        assert launched.stop(signal.SIGHUP) == 128 + signal.SIGHUP
        assert launched.out.splitlines()[-1] == "stopped"
        assert launched.err == ""
        assert list((home / "run").glob("*.pid")) == []
        assert processes_of(home) == []


def test_report_audit_without_database(home):
    result = command("audit", env=environment(home, None))
    assert result.returncode == 1
    assert f"there is no database at {home}/data/notifications.db" in one_sentence(result.stderr)


def test_commands_report_missing_platform(home):
    env = environment(home, None)
    unreachable = command("register", "--wait", "0.2", env=env)
    assert unreachable.returncode == 1
    assert f"http://127.0.0.1:{env['PERDURE_ADMIN_PORT']}/health does not answer" in one_sentence(unreachable.stderr)
    malformed = command("register", "--at", "flights=here", env=env)
    assert malformed.returncode == 1
    assert "write flights=http://host:port" in one_sentence(malformed.stderr)
    unknown = command("serve", "flight", env=env)
    assert unknown.returncode == 1
    assert "there is no service 'flight'" in one_sentence(unknown.stderr)
    wrong = command("migrate", env={**env, "PERDURE_HOTELS_DATABASE_URL": "mysql://localhost/hotels"})
    assert wrong.returncode == 1
    assert "PERDURE_HOTELS_DATABASE_URL: 'mysql' databases are not supported" in one_sentence(wrong.stderr)
    assert command("migrate", env=env).returncode == 0
    assert {path.name for path in (home / "data").glob("*.db")} == {f"{name}.db" for name in DATABASE_OWNERS}
    (home / "data" / "trips.db").touch()
    for name in ("migrate", "audit", "run"):
        refused = command(name, env=env)
        assert refused.returncode == 1
        assert "trips.db is the database of an earlier version" in one_sentence(refused.stderr)
