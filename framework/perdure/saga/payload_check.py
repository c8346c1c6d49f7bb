"""Comparison of an edited payload with the type of its compensation, before a redrive accepts it."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import restate

from perdure.engine.catalog import Field, find_problem
from perdure.errors import InvalidInput, PerdureTerminalError, RunExhausted
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.schema import CompensationHandler

_CHECK: Final = RunConfig("check the payload", max_retries=1)

TIMEOUT: Final = 2.0
"""Seconds that one request may take, because the rollback of the saga waits meanwhile."""


async def check_payload(ctx: restate.Context, compensation: CompensationHandler, payload: Any) -> None:
    """Refuse a payload that the compensation cannot read. Without PERDURE_ADMIN_URL, nothing is checked.

    Raises:
        InvalidInput: The compensation is not registered, or its input does not fit the payload.
        PerdureTerminalError: The admin API does not answer in time; 503.
    """

    async def find() -> tuple[Field, str] | None:
        async with asyncio.timeout(TIMEOUT):
            return await find_problem(compensation.service, compensation.handler, compensation.key, payload)

    try:
        found = await run_with_retry(ctx, _CHECK, find)
    except RunExhausted as error:
        raise PerdureTerminalError(
            "the payload was not checked, because the engine's admin API did not answer: redrive "
            "again later, or without a payload",
            status_code=503,
            metadata={"field": "payload"},
        ) from error
    if found is not None:
        raise InvalidInput(f"payload: {found[1]}", metadata={"field": "payload"})
