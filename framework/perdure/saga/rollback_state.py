"""What `Rollbacks` keeps of a saga in its state: the saga, how far its rollback is, and what operators did about it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from perdure.saga.messages import TrailEntry
from perdure.saga.plan import StepProgress, run_key
from perdure.saga.saga_runs import KeptSaga
from perdure.state import State


class Head(BaseModel):
    """How far a rollback is, its steps aside.

    Args:
        generation: Which pass is the current one.
        started_at: When it was asked for first.
        updated_at: When it was last worked on.
        waiters: Awakeables of those who wait for its end.
        acts: How many acts of operators its trail has.
        waits_for: Which run a waiter waits for; no entry when that is not known, and then it is the end of all.
        ended: The runs whose end was told of, by number.
    """

    generation: int = 0
    started_at: datetime
    updated_at: datetime
    waiters: list[str] = []
    acts: int = 0
    waits_for: dict[str, int] = {}
    ended: list[int] = []

    def with_waiter(self, awakeable: str | None, run: int | None) -> Head:
        """Return a head with somebody more who waits for a run's end.

        Args:
            awakeable: Their awakeable; None when nobody waits. A run under a key that was used before has those of the
                run before it.
            run: The run's number; None when it is not known.
        """
        if awakeable is None:
            return self
        kept = {each: number for each, number in self.waits_for.items() if each != awakeable}
        return self.model_copy(
            update={
                "waiters": [*(each for each in self.waiters if each != awakeable), awakeable],
                "waits_for": kept if run is None else {**kept, awakeable: run},
            }
        )

    def has_waiter(self, awakeable: str, run: int | None) -> bool:
        """Tell if somebody waits already for a run's end, or for whatever end when the run is not known."""
        return awakeable in self.waiters and run in (None, self.waits_for.get(awakeable))

    def with_waiters(self, awakeables: list[str]) -> Head:
        """Return a head with no other waiters than these, of those it has."""
        waits_for = {each: number for each, number in self.waits_for.items() if each in awakeables}
        return self.model_copy(update={"waiters": awakeables, "waits_for": waits_for})


def request_state(ctx: Any) -> State[KeptSaga]:
    """The saga, with the steps of all its runs."""
    return State(ctx, "request", KeptSaga)


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


async def all_progress(ctx: Any, saga: KeptSaga) -> dict[int, StepProgress]:
    """Return the rollback of each step, by position.

    Args:
        ctx: A context of the saga's rollback.
        saga: The saga.
    """
    found = {step.position: await progress_state(ctx, step.position).get() for step in saga.steps}
    return {position: each or StepProgress() for position, each in found.items()}
