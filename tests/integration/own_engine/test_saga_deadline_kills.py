"""A deadline that passes around a kill -9 of the engine."""

from __future__ import annotations

from datetime import timedelta

import pytest

from perdure import Orchestration
from perdure.errors import DeadlineExceeded
from tests.integration.saga_bench import run_step, truth
from tests.integration.test_saga_deadlines import failure, rolled_back, run
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")


async def test_deadline_survives_killed_engine(bench, did, engine):
    bench.deadline = timedelta(seconds=3)

    async def main(cp: Orchestration) -> None:
        await run_step(cp, "a")
        if cp.key.startswith("sleep"):
            await cp.sleep(timedelta(hours=1))
        await run_step(cp, "b", hangs=True)

    await bench.serve(main)
    keys = [(await run(bench, kind))[0] for kind in ("sleep", "call")]
    await eventually(truth(lambda: did.count(f"do {keys[1]}/b") > 0), what="running step")
    await eventually(truth(lambda: did.count(f"done {keys[0]}/a") > 0), what="sleeping saga")
    await engine.engine.kill()
    await engine.engine.start()
    for key in keys:
        await rolled_back(bench, key)
    bench.released.set()
    for key in keys:
        error = await failure(bench, key)
        assert (error.status_code, error.code) == (408, DeadlineExceeded.code)
        assert bench.undone(key).count("undo a") == 1
        assert (await bench.rollback(key)).earlier == []
