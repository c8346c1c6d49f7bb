"""`DeadLetters`: what could not be undone, and what operators do about it.

Each rollback keeps its own steps; the index only knows which of them wait for somebody. Nothing leaves it without an
operator's act, and each act is in the rollback's audit log with who, when and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import restate
from pydantic import BaseModel

from perdure._runtime.waiting import is_own_cancel
from perdure.clients import ObjectClient
from perdure.errors import InvalidInput, NotFound, TerminalError
from perdure.handlers import handler
from perdure.saga.messages import (
    ActionReceipt,
    ActRequest,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetter,
    DeadLetterGroup,
    DeadLetterPage,
    ListRequest,
    RollbackRequest,
    StepAction,
    act_on_step,
)
from perdure.saga.operator_actions import Act, error_signature
from perdure.saga.policy import StepProgress, StepRecord
from perdure.state import State

_PREFIX = "letter/"
_INDEX_KEY = "all"

dead_letters = restate.Service(
    "DeadLetters", description="Steps that could not be undone, and what is decided about them."
)
index = restate.VirtualObject("DeadLetterIndex", description="Which steps wait for an operator.", ingress_private=True)


class _Letters(BaseModel):
    items: list[DeadLetter]


def _letter_state(ctx: Any, letter_id: str) -> State[DeadLetter]:
    return State(ctx, _PREFIX + letter_id, DeadLetter)


@handler(index, "exclusive", enable_lazy_state=True)
async def put(ctx: restate.ObjectContext, letter: DeadLetter) -> None:
    """Add a dead letter; the same one again changes nothing."""
    state = _letter_state(ctx, letter.id)
    known = await state.get()
    if known is None or known.redriven != letter.redriven:
        await state.set(letter)


@handler(index, "exclusive", enable_lazy_state=True)
async def remove(ctx: restate.ObjectContext, letter_id: str) -> None:
    """Remove a dead letter that somebody decided about."""
    await _letter_state(ctx, letter_id).clear()


@handler(index, "shared", name="all")
async def all_letters(ctx: restate.ObjectSharedContext) -> _Letters:
    """Return all dead letters, oldest first."""
    names = [name for name in await ctx.state_keys() if name.startswith(_PREFIX)]
    found = [await _letter_state(ctx, name.removeprefix(_PREFIX)).get() for name in names]
    return _Letters(items=sorted((each for each in found if each), key=lambda each: (each.since, each.id)))


def letter_of(saga: RollbackRequest, step: StepRecord, progress: StepProgress, now: datetime) -> DeadLetter:
    """Return the dead letter of a step that could not be undone.

    Args:
        saga: The saga.
        step: The step.
        progress: How far the step's rollback came.
        now: The time.
    """
    error = progress.error or ""
    return DeadLetter(
        id=f"{saga.saga_id}/{step.position}",
        saga_id=saga.saga_id,
        service=saga.service,
        step=step.step,
        position=step.position,
        compensation=str(step.compensation or ""),
        payload=progress.payload_for(step),
        error=error,
        signature=error_signature(error),
        reason=saga.reason,
        attempts=progress.attempts,
        redriven=progress.drive,
        since=now,
    )


async def remember(ctx: restate.Context, letter: DeadLetter) -> None:
    """Add a dead letter to the index, durably, without waiting for it."""
    await ObjectClient(ctx, put, _INDEX_KEY).send(letter)


async def ensure(ctx: restate.Context, letter: DeadLetter) -> None:
    """Add a dead letter to the index, and wait until it is there: a kill follows what was only sent.

    Args:
        ctx: A context.
        letter: The dead letter.
    """
    await ObjectClient(ctx, put, _INDEX_KEY).call(letter)


async def forget(ctx: restate.Context, letter_id: str) -> None:
    """Remove a dead letter from the index, durably, without waiting for it."""
    await ObjectClient(ctx, remove, _INDEX_KEY).send(letter_id)


@handler(dead_letters, name="list", read_only=True, ingress_private=False)
async def list_letters(ctx: restate.Context, request: ListRequest) -> DeadLetterPage:
    """List dead letters, oldest first, with the groups of equal failures."""
    fitting = [each for each in await _all(ctx) if request.matches(each)]
    first = (request.page - 1) * request.page_size
    groups = Counter(each.signature for each in fitting)
    return DeadLetterPage(
        items=fitting[first : first + request.page_size],
        total=len(fitting),
        page=request.page,
        pages=max(1, -(-len(fitting) // request.page_size)),
        groups=[DeadLetterGroup(signature=signature, count=count) for signature, count in groups.most_common()],
    )


def _handler_for(act: Act) -> Callable[[restate.Context, ActRequest], Awaitable[ActionReceipt]]:
    async def act_on_one(ctx: restate.Context, request: ActRequest) -> ActionReceipt:
        return await _act(ctx, act, request)

    act_on_one.__name__ = act_on_one.__qualname__ = act.value
    act_on_one.__doc__ = f"{act.value.capitalize()} one dead letter."
    return act_on_one


redrive, skip, resolve, discard, annotate = (
    handler(dead_letters, name=act.value, ingress_private=False)(_handler_for(act))
    for act in (Act.REDRIVE, Act.SKIP, Act.RESOLVE, Act.DISCARD, Act.ANNOTATE)
)


@handler(dead_letters, ingress_private=False)
async def act_on_many(ctx: restate.Context, request: BulkActionRequest) -> BulkActionReceipt:
    """Do the same to all dead letters that fit a filter."""
    if not request.filter.model_dump(exclude_none=True):
        raise InvalidInput("invalid input: filter: give at least one field", metadata={"field": "filter"})
    done: list[str] = []
    refused: dict[str, str] = {}
    for letter in [each for each in await _all(ctx) if request.filter.matches(each)]:
        proof = request.proofs.get(letter.id)
        one = ActRequest(id=letter.id, actor=request.actor, reason=request.reason, proof=proof)
        try:
            await _act(ctx, request.act, one)
        except TerminalError as error:
            if is_own_cancel(error):  # what is left is left alone
                raise
            refused[letter.id] = error.message
        else:
            done.append(letter.id)
    return BulkActionReceipt(done=done, refused=refused)


async def _all(ctx: restate.Context) -> list[DeadLetter]:
    return (await ObjectClient(ctx, all_letters, _INDEX_KEY).call()).items


async def _act(ctx: restate.Context, act: Act, request: ActRequest) -> ActionReceipt:
    saga_id, _, position = request.id.rpartition("/")
    if not saga_id or not position.isdecimal() or len(position) > 9:  # no saga has that many steps
        raise NotFound(f"no dead letter '{request.id[:200]}': an id is {{saga}}/{{position}}", metadata={"field": "id"})
    step_action = StepAction(
        position=int(position),
        act=act,
        actor=request.actor,
        reason=request.reason,
        payload=request.payload,
        proof=request.proof,
    )
    return await ObjectClient(ctx, act_on_step, saga_id).call(step_action)


def definitions() -> list[restate.Service | restate.VirtualObject]:
    """Return what to serve."""
    return [dead_letters, index]
