"""Alerts read from the engine's tables, as while their service is down."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from perdure import IngressClient
from perdure.alerts.service import ALERTS_KEY, Alerts, list_alerts, read_alerts, scan_target
from perdure.engine.admin import AdminClient

pytestmark = pytest.mark.restate_modes("http2")


async def test_read_alerts_equal_listed_alerts(restate):
    env = await restate.serve(Alerts(restate.server.admin, scan_interval=timedelta(minutes=7)))
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        began = datetime.now(UTC)
        await ingress.call(scan_target, key=ALERTS_KEY)
        read = await read_alerts(admin)
        assert read == await ingress.call(list_alerts, key=ALERTS_KEY)
    assert read.scan_interval == timedelta(minutes=7)
    assert began - timedelta(seconds=1) <= read.scanned_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert read.is_current(began)
