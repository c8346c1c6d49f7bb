"""What `Rollbacks` keeps of a saga in its state: the saga, how far its rollback is, and what operators did about it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from perdure.saga.executions import StoredSaga
from perdure.saga.messages import AuditEntry, Waiter
from perdure.saga.policy import StepProgress, run_key
from perdure.state import State


class Head(BaseModel):
    """How far a rollback is, its steps aside.

    Args:
        generation: Which pass is the current one.
        started_at: When it was asked for first.
        updated_at: When it was last worked on.
        waiters: Invocations that wait for its end, each with the awakeable that wakes it.
        acts: How many acts of operators its audit log has.
        waits_for: Which run an invocation waits for; no entry when that is not known, and then it is the end of all.
        ended: The runs whose end was told of, by number.
    """

    generation: int = 0
    started_at: datetime
    updated_at: datetime
    waiters: dict[str, str] = {}
    acts: int = 0
    waits_for: dict[str, int] = {}
    ended: list[int] = []

    def with_waiter(self, waiter: Waiter | None, run: int | None) -> Head:
        """Return a head with one more waiter for an execution's end; an invocation is there once.

        Args:
            waiter: The waiter, if there is one.
            run: The execution's number; None when it is not known.
        """
        if waiter is None:
            return self
        left = self.without_waiters({waiter.invocation})
        return left.model_copy(
            update={
                "waiters": {**left.waiters, waiter.invocation: waiter.awakeable},
                "waits_for": left.waits_for if run is None else {**left.waits_for, waiter.invocation: run},
            }
        )

    def without_waiters(self, invocations: Collection[str]) -> Head:
        """Return a head without some waiters.

        Args:
            invocations: Their ids.
        """
        waiters = {each: awakeable for each, awakeable in self.waiters.items() if each not in invocations}
        waits_for = {each: number for each, number in self.waits_for.items() if each in waiters}
        return self.model_copy(update={"waiters": waiters, "waits_for": waits_for})


def request_state(ctx: Any) -> State[StoredSaga]:
    """The saga, with the steps of all its runs."""
    return State(ctx, "request", StoredSaga)


def head_state(ctx: Any) -> State[Head]:
    """How far the rollback is."""
    return State(ctx, "head", Head)


def open_mark(ctx: Any) -> State[bool]:
    """There while a rollback is at work, so that the reconciler finds one that stands still."""
    return State(ctx, "open", bool)


def run_mark(ctx: Any, run: str) -> State[bool]:
    """There once a run's steps are, so that the reconciler finds a run whose rollback never began."""
    return State(ctx, run_key(run), bool)


def progress_state(ctx: Any, position: int) -> State[StepProgress]:
    """The rollback of one step."""
    return State(ctx, f"step/{position:06d}", StepProgress)


def audit_log_state(ctx: Any, number: int) -> State[AuditEntry]:
    """One act of an operator."""
    return State(ctx, f"audit_log/{number:06d}", AuditEntry)


async def all_progress(ctx: Any, saga: StoredSaga) -> dict[int, StepProgress]:
    """Return the rollback of each step, by position.

    Args:
        ctx: A context of the saga's rollback.
        saga: The saga.
    """
    found = {step.position: await progress_state(ctx, step.position).get() for step in saga.steps}
    return {position: each or StepProgress() for position, each in found.items()}
