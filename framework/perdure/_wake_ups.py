"""Internal waits: an awakeable wakes the waiter, and a call reads the outcome.

Any caller of the engine's ingress can complete an awakeable, because its ID follows from the public invocation ID. A
completion is therefore a wake-up without data, and the waiter calls the service that owns the outcome. Request and
response carry a random ID: the ingress of engine 1.7 also completes pending calls (IDs that begin with ``prom_1``), but
its callers cannot read the random ID.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import restate
from restate.serde import BytesSerde

from perdure._runtime.time_scale import scaled
from perdure.observability.logging import get_logger
from perdure.retry import RetryPolicy
from perdure.runs import RunConfig, run_with_retry

_PAUSES: Final = RetryPolicy(max_attempts=None)
"""Pauses of a waiter after wake-ups without an outcome."""

WAIT_RUN_PREFIX: Final = "perdure:wait:"
"""Prefix of the name of the run that makes a wait ID. The entries that follow it in a step belong to the wait."""

_bytes = BytesSerde()

log = get_logger("perdure._wake_ups")


def wake_up(ctx: restate.Context, awakeable: str) -> None:
    """Wake the waiter of an awakeable."""
    ctx.resolve_awakeable(awakeable, b"", serde=_bytes)


def new_awakeable(ctx: restate.Context) -> tuple[str, restate.RestateDurableFuture[Any]]:
    """Return the ID of a new awakeable, and a future to wait for, whose value must not be read."""
    return ctx.awakeable(serde=_bytes)


async def new_wait_id() -> str:
    """Return a random ID that no caller of the ingress can guess."""
    return secrets.token_hex(16)


async def make_wait_id(ctx: restate.Context, outcome: str) -> str:
    """Return a journaled random ID. The context's UUIDs are predictable: the invocation ID seeds them."""
    return await run_with_retry(ctx, RunConfig(f"{WAIT_RUN_PREFIX}{outcome}"), new_wait_id)


class WakeUpBackoff:
    """Delays a waiter after wake-ups without an outcome, so that a flood of completions cannot fill its journal."""

    def __init__(self, ctx: restate.Context, awaited: str) -> None:
        self._ctx = ctx
        self._awaited = awaited
        self._early = 0

    async def pause(self) -> None:
        """Pause for 1 second, doubling up to a minute.

        Raises:
            Cancelled: This invocation was cancelled.
        """
        await self.start_pause()

    def start_pause(self) -> restate.RestateDurableSleepFuture:
        """Return the future of a pause as above."""
        self._early += 1
        if self._early == 1:  # logged once: the sleep that follows is in the journal
            log.warning(
                "wait.woken_early",
                awaited=self._awaited,
                reason="an awakeable was completed before its outcome existed: completions may be forged",
            )
        return self._ctx.sleep(
            scaled(_PAUSES.delay_after(self._early)), f"woken early while waiting for {self._awaited}"
        )
