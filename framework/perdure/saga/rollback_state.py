"""What `Rollbacks` keeps of a saga in its state: the saga, how far its rollback is, and what operators did about it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from perdure.saga.messages import RollbackRequest, TrailEntry
from perdure.saga.plan import StepProgress, run_key
from perdure.state import State


class Head(BaseModel):
    """How far a rollback is, its steps aside.

    Args:
        generation: Which pass is the current one.
        started_at: When it was asked for first.
        updated_at: When it was last worked on.
        waiters: Awakeables of those who wait for its end.
        acts: How many acts of operators its trail has.
    """

    generation: int = 0
    started_at: datetime
    updated_at: datetime
    waiters: list[str] = []
    acts: int = 0


def request_state(ctx: Any) -> State[RollbackRequest]:
    """The saga, with the steps of all its runs."""
    return State(ctx, "request", RollbackRequest)


def head_state(ctx: Any) -> State[Head]:
    """How far the rollback is."""
    return State(ctx, "head", Head)


def open_mark(ctx: Any) -> State[bool]:
    """There while a rollback is at work, so that the sentinel finds one that stands still."""
    return State(ctx, "open", bool)


def run_mark(ctx: Any, run: str) -> State[bool]:
    """There once a run's steps are, so that the sentinel finds a run whose rollback never began."""
    return State(ctx, run_key(run), bool)


def progress_state(ctx: Any, position: int) -> State[StepProgress]:
    """The rollback of one step."""
    return State(ctx, f"step/{position:06d}", StepProgress)


def trail_state(ctx: Any, number: int) -> State[TrailEntry]:
    """One act of an operator."""
    return State(ctx, f"trail/{number:06d}", TrailEntry)


async def all_progress(ctx: Any, saga: RollbackRequest) -> dict[int, StepProgress]:
    """Return the rollback of each step, by position.

    Args:
        ctx: A context of the saga's rollback.
        saga: The saga.
    """
    found = {step.position: await progress_state(ctx, step.position).get() for step in saga.steps}
    return {position: each or StepProgress() for position, each in found.items()}
