"""`perdure.testing` refuses sagas that nothing could undo. A module of its own: nobody else serves `Rollbacks` here."""

from __future__ import annotations

from uuid import uuid4

import pytest
import restate as sdk

from perdure import ControlPlaneService, Orchestration
from perdure.errors import ConfigurationError
from perdure.saga import hosting


@pytest.mark.restate_modes("http2")
async def test_sagas_that_nothing_could_undo_are_refused_before_one_waits_for_ever(restate):
    journeys = ControlPlaneService("Journeys" + uuid4().hex)

    @journeys.compensation()
    async def undo(ctx: sdk.Context, what: str) -> None: ...

    @journeys.main()
    async def run(cp: Orchestration) -> str:
        return cp.key

    with pytest.raises(ConfigurationError, match=rf"sagas of {journeys.name}: serve \*perdure.saga.hosting"):
        await restate.serve(journeys)
    assert (await restate.serve(journeys, *hosting.definitions())).services
    assert (await restate.serve(journeys)).services  # the engine has them from before
