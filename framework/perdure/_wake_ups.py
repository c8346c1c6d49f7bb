"""Internal waits: an awakeable wakes the waiter, and a call reads the outcome.

The engine's ingress lets anybody complete an awakeable, and its id follows from the invocation's id, which is public.
So a completion is a wake-up without data. The waiter then calls the service that owns the outcome. The call carries a
random id, and the answer has to carry it, too: the ingress of engine 1.7 also takes completions of pending calls (ids
that begin with ``prom_1``), and a caller of the ingress can't read the random id anywhere.
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

_anything = BytesSerde()

log = get_logger("perdure._wake_ups")


def wake_up(ctx: restate.Context, awakeable: str) -> None:
    """Wake a waiter.

    Args:
        ctx: A context.
        awakeable: The waiter's awakeable.
    """
    ctx.resolve_awakeable(awakeable, b"", serde=_anything)


def new_awakeable(ctx: restate.Context) -> tuple[str, restate.RestateDurableFuture[Any]]:
    """Return the id of a new awakeable, and a future that must be waited for but never read.

    Args:
        ctx: The waiter's context.
    """
    return ctx.awakeable(serde=_anything)


async def new_wait_id() -> str:
    """Return a random id, which no caller of the ingress can guess."""
    return secrets.token_hex(16)


WAIT_RUN_PREFIX: Final = "perdure:wait:"
"""Begins the name of the run that makes a wait's id. What a step does after it belongs to the wait."""


async def make_wait_id(ctx: restate.Context, what: str) -> str:
    """Return a random id, the same on replay.

    The context's own UUIDs would not do: their seed follows from the invocation's id.

    Args:
        ctx: The waiter's context.
        what: The awaited outcome, for the run's name.
    """
    return await run_with_retry(ctx, RunConfig(f"{WAIT_RUN_PREFIX}{what}"), new_wait_id)


class WakeUps:
    """Slows a waiter down that is woken without reason, so that a flood of completions does not fill its journal.

    Args:
        ctx: The waiter's context.
        what: The awaited outcome, for the log.
    """

    def __init__(self, ctx: restate.Context, what: str) -> None:
        self._ctx = ctx
        self._what = what
        self._early = 0

    async def was_early(self) -> None:
        """Pause after a wake-up without an outcome: 1 second the first time, twice as long each time.

        Raises:
            Cancelled: This invocation was cancelled.
        """
        self._early += 1
        if self._early == 1:  # logged once: the sleep that follows is in the journal
            log.warning(
                "wait.woken_early",
                what=self._what,
                why="an awakeable was completed before there was an outcome: somebody may be forging completions",
            )
        await self._ctx.sleep(scaled(_PAUSES.delay_after(self._early)), f"woken early while waiting for {self._what}")
