"""`perdure.testing` rejects sagas without `Rollbacks`. Other modules serve `Rollbacks`, so this test needs its own."""

from __future__ import annotations

from uuid import uuid4

import pytest

from perdure import ControlPlaneService, Orchestration, Target
from perdure.errors import ConfigurationError

book = Target("Rooms", "book", str, str)
cancel = Target("Rooms", "cancel", str, None)


@pytest.mark.restate_modes("http2")
async def test_reject_sagas_without_rollbacks(restate):
    journeys = ControlPlaneService("Journeys" + uuid4().hex)

    @journeys.main()
    async def run(cp: Orchestration) -> str:
        return await cp.step("book", book, cp.key, compensate=cancel)

    with pytest.raises(
        ConfigurationError, match=rf"sagas of {journeys.name} need Rollbacks; serve them with host_platform"
    ):
        await restate.serve(journeys)
    assert (await restate.serve(journeys, host_platform=True)).services
    assert (await restate.serve(journeys)).services  # Rollbacks is registered already
