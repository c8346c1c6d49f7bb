"""The whole platform with its journal encrypted: every scenario plays as before, and nothing of a trip lies open."""

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
from tests.e2e.legible import found_in, legible_topology
from tests.system.scenarios.harness import Stage, harness_environment
from tests.system.scenarios.orders import order
from tests.system.scenarios.scenarios import SCENARIOS, play


@pytest.mark.timeout(240)
async def test_encrypted_scenarios_leave_no_readable_data(tmp_path, engine):
    keys = tmp_path / "journal.keys"
    new_encryption_key(keys)
    topology = legible_topology(tmp_path)
    environment = {**harness_environment(os.environ), ENCRYPTION_KEYS_FILE: str(keys)}
    platform = Platform(topology, engine, report=print, environment=environment)
    try:
        await platform.start()
        async with Stage.on(platform) as stage:
            for scenario in SCENARIOS:
                facts = await play(scenario, stage)
                assert [fact for fact in facts if not fact.agrees] == [], scenario.name

            secret = ORDINARY.model_copy(update={"traveller": "nobody-is-to-know@example.com"})
            assert await stage.book(new_trip_id(), secret) == "confirmed"

            # What comes in unencrypted is refused, and the refused text stays on disk: so the search can find it.
            clear = order(flight="PD777", hotel="Attic", account="acct-bob")
            clear = clear.model_copy(update={"traveller": "everybody-knows@example.com"})
            with pytest.raises(IngressError) as refused:
                async with IngressClient(topology.ingress_url) as without_keys:
                    await without_keys.call(trips.book, clear, key=new_trip_id())
            assert refused.value.status_code == 400
    finally:
        await platform.stop(asyncio.Event())
    # The reconciler reads tables with encrypted values, and must detect orphaned sagas only.
    acted = [line for line in (topology.log_dir / "saga.log").read_text().splitlines() if "reconciler.acted" in line]
    assert {json.loads(line)["kind"] for line in acted} == {"orphaned"}
    open_to_all = {clear.traveller, clear.payment.account, clear.flight.number}
    # What a failure says stays readable, and names the flight or the hotel that refused, or who had decided already
    # when somebody came too late; so these aren't looked for.
    hidden = {secret.traveller, "acct-declined", "acct-frozen", "acct-poor", "Sloth"}
    assert found_in(topology.home / "data" / "restate", open_to_all | hidden).keys() == open_to_all
