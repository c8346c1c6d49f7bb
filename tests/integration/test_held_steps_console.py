"""The console's pages of held steps, on a real engine that requires signatures."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from perdure import Hold, Orchestration
from perdure.security import SigningMode, SigningRules, TrustedKeys, set_signing_rules
from perdure.testing import Restate
from services.console.app import create_app
from services.console.auth.roles import Role
from tests.integration.saga_bench import step
from tests.integration.test_held_steps import Holds
from tests.unit.services.console.conftest import CHEAP, Clock, Console, settings_of

pytestmark = pytest.mark.restate_modes("http2")


@pytest.fixture
async def console(restate: Restate, tmp_path: Path) -> AsyncIterator[Console]:
    clock = Clock()
    clock.now = datetime.now(UTC)
    settings = settings_of(tmp_path, ingress_url=restate.server.ingress, admin_url=restate.server.admin)
    app = create_app(settings, hasher=CHEAP, now=clock)
    async with app.router.lifespan_context(app):
        console = Console(app, clock)
        issuers = TrustedKeys(issuers=(console.components.signer.issuer,))
        set_signing_rules(SigningRules(mode=SigningMode.SIGNED, trusted_keys=issuers))
        yield console
        set_signing_rules(None)


async def test_console_acts_on_held_steps(bench, console):
    holds = Holds(bench)
    await bench.serve(holds.main)
    service = {"service": bench.name}

    async def main(cp: Orchestration) -> Any:
        return await cp.parallel(step(cp, "hotel", on_failure=Hold(timedelta(hours=1)), fails=1))

    keys = [await holds.start(main) for _ in range(4)]
    first, second, *_ = [await holds.held(key, "hotel") for key in keys]
    tokens = {role: await console.add(f"{role.value}@example.com", role) for role in (Role.OPERATOR, Role.VIEWER)}

    def as_(role: Role) -> Any:
        return console.client(headers={"authorization": f"Bearer {tokens[role]}"})

    async with as_(Role.VIEWER) as viewer:
        page = await viewer.get("/held-steps", params=service)
        assert "Retry all" not in page.text
        assert "4 in total" in page.text
        assert (await viewer.post(f"/held-steps/{first.id}/retry", data={"since": first.since})).status_code == 403
        assert f"/held-steps/{first.id}" in unquote((await viewer.get(f"/sagas/{first.saga_id}")).text)

    async with as_(Role.OPERATOR) as olga:
        page = await olga.get("/held-steps", params=service)
        (shown_at,) = re.findall(r'name="before" value="([^"]+)"', page.text)
        one = await olga.get(f"/held-steps/{first.id}")
        (since,) = set(re.findall(r'name="since" value="([^"]+)"', one.text))
        assert "Roll back" in one.text
        stale = await olga.post(f"/held-steps/{first.id}/retry", data={"since": "2026-01-01T00:00:00Z"})
        assert (stale.status_code, "failed again meanwhile" in stale.text) == (409, True)
        wrong = await olga.post(f"/held-steps/{first.id}/complete", data={"since": since, "result": "7"})
        assert (wrong.status_code, "result: the value is an integer" in wrong.text) == (400, True)
        done = await olga.post(f"/held-steps/{first.id}/complete", data={"since": since, "result": '"by phone"'})
        assert done.status_code == 303
        assert await holds.result(keys[0]) == ["by phone"]
        answer = await olga.post(f"/api/held-steps/{second.id}/roll_back", json={"reason": "closed"})
        assert answer.status_code == 200, answer.text
        assert "hotel is out of order" in (await holds.result(keys[1])).message
        group = {**service, "action": "retry", "signature": second.signature}
        nothing = await olga.post("/held-steps", data={**group, "before": "2026-01-01T00:00:00Z"})
        assert nothing.status_code == 303
        assert len(await holds.listed(keys[2])) == 1
        bulk = await olga.post("/held-steps", data={**group, "before": unescape(shown_at)})
        assert bulk.status_code == 303
        assert [await holds.result(key) for key in keys[2:]] == [["HOTEL"]] * 2
        shown = await olga.get(f"/held-steps/{first.id}")
        assert "Not held any longer: complete." in shown.text
        assert "operator@example.com" in shown.text
        assert "No matches." in (await olga.get("/held-steps", params=service)).text
