"""Commands for sagas that need attention, on a running platform."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from perdure.saga.status import RollbackState
from services.runtime.booking import ORDINARY, new_trip_id
from tests.command_line import run_perdure
from tests.support import eventually
from tests.system.scenarios.harness import Harness
from tests.system.scenarios.orders import order

pytestmark = pytest.mark.asyncio(loop_scope="session")

Perdure = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def perdure(harness: Harness) -> Perdure:
    """Return a function that runs the command line against the platform."""
    return partial(run_perdure, **settings(harness))


def settings(harness: Harness) -> dict[str, str]:
    """Return the settings of an operator of the platform."""
    topology = harness.platform.topology
    return {
        "PERDURE_INGRESS_URL": topology.ingress_url,
        "PERDURE_ADMIN_URL": topology.admin_url,
        "PERDURE_ACTOR": "olga@example.com",
        "COLUMNS": "160",
    }


async def on(perdure: Perdure, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(perdure, *words)


async def listed_as(perdure: Perdure, trip_id: str, *options: str) -> str | None:
    """Return the phase of a saga in the list of sagas; None if it is not listed."""
    listed = await on(perdure, "sagas", "list", "--limit", "1000", "--json", *options)
    assert listed.returncode == 0, listed.stderr
    return next((each["phase"] for each in json.loads(listed.stdout)["items"] if each["key"] == trip_id), None)


async def test_redrive_dead_letter_by_command(harness: Harness, perdure: Perdure):
    trip_id = new_trip_id()
    await harness.book(trip_id, order(hotel="Fortress", account="acct-declined"))
    letter = f"{trip_id}/3"

    listed = await on(perdure, "dead-letters", "list", "--saga", trip_id)
    assert listed.returncode == 0
    assert letter in listed.stdout
    assert "hotel 'Fortress' failed to cancel the room" in " ".join(listed.stdout.split())
    page = json.loads((await on(perdure, "dead-letters", "list", "--saga", trip_id, "--json")).stdout)
    assert [each["id"] for each in page["items"]] == [letter]

    assert await listed_as(perdure, trip_id) == "needs_attention"
    assert f"perdure dead-letters show {letter}\n" in (await on(perdure, "sagas", "show", trip_id)).stdout
    assert f"perdure dead-letters redrive {letter} " in (await on(perdure, "dead-letters", "show", letter)).stdout
    assert (await on(perdure, "dead-letters", "annotate", letter, "-m", "called the hotel")).returncode == 0
    async with harness.hotel_repaired("Fortress"):
        redriven = await on(perdure, "dead-letters", "redrive", letter, "-m", "repaired")
        assert (redriven.returncode, redriven.stdout) == (0, f"{letter}: redrive recorded. State: pending.\n")
        await harness.until_rollback(trip_id, RollbackState.ROLLED_BACK)

    assert await listed_as(perdure, trip_id) is None
    assert await listed_as(perdure, trip_id, "--phase", "rolled_back") == "rolled_back"
    shown = await on(perdure, "sagas", "show", trip_id)
    assert shown.returncode == 0, shown.stderr
    assert f"Saga {trip_id} of Trips: failure, rollback rolled_back" in shown.stdout
    for word in ("Hotels/reserve", "Payments/charge", "undone", "called the hotel", "olga@example.com"):
        assert word in shown.stdout
    timeline = json.loads((await on(perdure, "sagas", "show", trip_id, "--json")).stdout)
    assert [(each["step"], each["undo"]) for each in timeline["steps"]] == [
        ("order", "undone"),
        ("flight", "undone"),
        ("hotel", "undone"),
        ("payment", "undone"),
    ]

    late = await on(perdure, "dead-letters", "redrive", letter)
    assert late.returncode == 1
    assert "not a dead letter" in late.stderr
    assert "Traceback" not in late.stderr


async def test_installed_command_shows_booked_trip(harness: Harness):
    trip_id = new_trip_id()
    await harness.book(trip_id, ORDINARY)
    command = [Path(sys.executable).with_name("perdure"), "sagas", "show", trip_id]
    environment = {**os.environ, **settings(harness)}
    shown = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert f"Saga {trip_id} of Trips: success\n" in shown.stdout
    assert "Payments/charge" in shown.stdout


async def test_show_trip_that_waits_for_approval(harness: Harness, perdure: Perdure):
    trip_id = new_trip_id()
    await harness.send(trip_id, order(amount_minor=500_000))

    async def asked() -> bool:
        shown = await on(perdure, "sagas", "show", trip_id)
        return f"The saga requested an approval: perdure approvals show {trip_id}\n" in shown.stdout

    await eventually(asked, what="hint at the approval")
    assert await listed_as(perdure, trip_id) == "running"
    assert f"Saga {trip_id} of Trips: running\n" in (await on(perdure, "sagas", "show", trip_id)).stdout
    table = await on(perdure, "sagas", "list", "--service", "Trips")
    assert trip_id in table.stdout
    assert "perdure sagas show SAGA" in table.stdout
    assert (await on(perdure, "approvals", "reject", trip_id)).returncode == 0


async def test_errors_are_one_line(perdure: Perdure):
    for words, sentence in {
        ("sagas", "show", "missing"): "no saga 'missing'",
        ("dead-letters", "show", "missing/1"): "dead letter 'missing/1' does not exist",
        ("dead-letters", "redrive", "missing/1"): "no dead letter 'missing/1'",
        ("dead-letters", "redrive"): "pass either the ID of a dead letter or --signature",
        ("dead-letters", "redrive", "x/1", "--payload", "{"): "--payload is not JSON",
        ("sagas", "list", "--admin", "http://127.0.0.1:1"): "does not answer",
        ("sagas", "show", "x", "--admin", "http://127.0.0.1:1"): "does not answer",
        ("dead-letters", "list", "--ingress", "localhost:8080"): "it begins with http://",
        ("invocations", "resume", "missing"): "invocation 'missing' does not exist",
    }.items():
        answer = await on(perdure, *words)
        assert answer.returncode in (1, 2), words
        assert sentence in answer.stderr
        assert answer.stderr.count("\n") == 1
