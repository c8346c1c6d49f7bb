"""Scenarios on a platform with an encrypted journal, whose data contains no readable values."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from perdure.engine.ingress import IngressClient
from perdure.errors import IngressError
from perdure.security import new_encryption_key
from perdure.security.codec import ENCRYPTION_KEYS_FILE
from services.contracts import trips
from services.runtime.booking import ORDINARY, new_trip_id
from services.runtime.platform import Platform
from tests.e2e.uncompressed import found_in, uncompressed_topology
from tests.system.scenarios.harness import Harness, harness_environment
from tests.system.scenarios.orders import order
from tests.system.scenarios.scenarios import SCENARIOS, play

PLAYED = {"card-declined", "approved", "dead-letter-kill", "bad-input"}
"""Scenarios that end a saga in each way: rolled back, completed, orphaned, refused."""


@pytest.mark.timeout(240)
async def test_encrypted_scenarios_leave_no_readable_data(tmp_path, engine):
    keys = tmp_path / "journal.keys"
    new_encryption_key(keys)
    topology = uncompressed_topology(tmp_path)
    environment = {**harness_environment(os.environ), ENCRYPTION_KEYS_FILE: str(keys)}
    platform = Platform(topology, engine, report=print, environment=environment)
    try:
        await platform.start()
        async with Harness.on(platform) as harness:
            for scenario in [each for each in SCENARIOS if each.name in PLAYED]:
                facts = await play(scenario, harness)
                assert [fact for fact in facts if not fact.agrees] == [], scenario.name

            secret = ORDINARY.model_copy(update={"traveller": "hidden@example.com"})
            assert await harness.book(new_trip_id(), secret) == "confirmed"

            # The engine stores a refused unencrypted request, which shows that the search below finds readable text.
            clear = order(flight="PD777", hotel="Attic", account="acct-bob")
            clear = clear.model_copy(update={"traveller": "unencrypted@example.com"})
            with pytest.raises(IngressError) as refused:
                async with IngressClient(topology.ingress_url) as without_keys:
                    await without_keys.call(trips.book, clear, key=new_trip_id())
            assert refused.value.status_code == 400
    finally:
        await platform.stop(asyncio.Event())
    # The reconciler reads tables with encrypted values, and must detect orphaned sagas only.
    acted = [line for line in (topology.log_dir / "saga.log").read_text().splitlines() if "reconciler.acted" in line]
    assert {json.loads(line)["kind"] for line in acted} == {"orphaned"}
    readable = {clear.traveller, clear.payment.account, clear.flight.number}
    # Error messages stay readable. They contain flights, hotels and approvers, so the search omits those.
    hidden = {secret.traveller, "acct-declined"}
    assert found_in(topology.home / "data" / "restate", readable | hidden).keys() == readable
