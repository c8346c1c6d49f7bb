"""Waits of tests for rollbacks."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Final

from perdure.control_plane import ControlPlaneService
from perdure.engine.ingress import IngressClient
from perdure.errors import IngressError, NotFound
from perdure.saga.messages import RollbackStatus, rollback_status
from perdure.saga.status import RollbackState

_PATIENCE: Final = timedelta(seconds=30)
_POLL: Final = 0.05


async def wait_for_rollback(
    ingress: IngressClient, service: ControlPlaneService, key: str, *, within: timedelta = _PATIENCE
) -> RollbackStatus:
    """Wait until the rollback of a saga has ended or needs attention, and return its status.

    Use it after a cancel or kill of an orchestration, whose callers do not wait for the rollback. After a failed step,
    the call itself returns when the rollback has ended.

    Args:
        ingress: A client of the engine's ingress.
        service: The service of the saga.
        key: The key of the saga's workflow.
        within: Time limit, not scaled.

    Returns:
        The status, with the state of each step's compensation.

    Raises:
        TimeoutError: The rollback has not begun, or still runs. The message has the states and errors of its steps.
        IngressError: `Rollbacks` is not served, or the engine does not answer.

    Example:
        await ingress.cancel(invocation)
        rollback = await wait_for_rollback(ingress, orders, order.id)
        assert rollback.status == "rolled_back"
    """
    saga_id = service.saga_id(key)
    deadline = time.monotonic() + within.total_seconds()
    while True:
        rollback = await _read(ingress, saga_id)
        if rollback is not None and rollback.status is not RollbackState.RUNNING:
            return rollback
        if time.monotonic() > deadline:
            waited = f"within {within.total_seconds():g} s"
            raise TimeoutError(f"{waited}, the rollback of saga '{saga_id}' {_describe(rollback)}")
        await asyncio.sleep(_POLL)


async def _read(ingress: IngressClient, saga_id: str) -> RollbackStatus | None:
    try:
        return await ingress.call(rollback_status, key=saga_id)
    except IngressError as error:
        if error.code != NotFound.code:
            raise
        return None


def _describe(rollback: RollbackStatus | None) -> str:
    if rollback is None:
        return "did not begin"
    steps = [f"{step.step} is {step.state}" + (f" ({step.error})" if step.error else "") for step in rollback.steps]
    return f"did not end: {', '.join(steps)}"
