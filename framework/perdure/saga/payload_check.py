"""Comparison of an edited payload with the type of its compensation, before a redrive accepts it."""

from __future__ import annotations

from typing import Any

import restate

from perdure.engine.catalog import find_problem
from perdure.errors import InvalidInput
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.schema import CompensationHandler

_CHECK = RunConfig("check the payload", max_retries=3)


async def check_payload(ctx: restate.Context, compensation: CompensationHandler, payload: Any) -> None:
    """Refuse a payload that the compensation cannot read. Without PERDURE_ADMIN_URL, nothing is checked.

    Raises:
        InvalidInput: The compensation is not registered, or its input does not fit the payload.
    """
    found = await run_with_retry(
        ctx, _CHECK, find_problem, compensation.service, compensation.handler, compensation.key, payload
    )
    if found is not None:
        raise InvalidInput(f"payload: {found[1]}", metadata={"field": "payload"})
