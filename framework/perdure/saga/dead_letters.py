"""`DeadLetters`: lists the steps whose compensation failed permanently, and applies operator actions to them.

The rollback owns its steps and their audit log. The index only lists the steps that need an operator action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import restate
from pydantic import BaseModel

from perdure._runtime.dispatch import DAY_LONG_RETRIES
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import is_own_cancel
from perdure.clients import ObjectClient
from perdure.errors import InvalidInput, NotFound, TerminalError
from perdure.handlers import handler
from perdure.retry import RetryPolicy
from perdure.saga.messages import (
    ActionReceipt,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetter,
    DeadLetterActionRequest,
    DeadLetterGroup,
    DeadLetterListRequest,
    DeadLetterPage,
    StepAction,
    apply_to_step,
    rollback_status,
)
from perdure.saga.policy import error_signature
from perdure.saga.schema import (
    DEAD_LETTER_INDEX,
    DEAD_LETTER_PREFIX,
    DEAD_LETTERS,
    INDEX_KEY,
    OperatorAction,
    RollbackRequest,
    StepProgress,
    StepRecord,
)
from perdure.saga.status import CompensationState
from perdure.state import State
from perdure.targets import KeyedTarget

_OUTCOME_POLLS = RetryPolicy(
    initial_interval=timedelta(milliseconds=200), max_interval=timedelta(seconds=5), max_attempts=64
)


class _Letters(BaseModel):
    items: list[DeadLetter]


_put = KeyedTarget(DEAD_LETTER_INDEX, "put", DeadLetter, None)
_remove = KeyedTarget(DEAD_LETTER_INDEX, "remove", str, None)
_list_all = KeyedTarget(DEAD_LETTER_INDEX, "all", None, _Letters)


def _letter_state(ctx: Any, letter_id: str) -> State[DeadLetter]:
    return State(ctx, DEAD_LETTER_PREFIX + letter_id, DeadLetter)


class DeadLetterIndex:
    """Handlers of `DeadLetterIndex`."""

    def __init__(self) -> None:
        self.definition = restate.VirtualObject(
            DEAD_LETTER_INDEX,
            description="Index of the dead letters.",
            ingress_private=True,
            invocation_retry_policy=DAY_LONG_RETRIES,
        )
        handler(self.definition, "exclusive", enable_lazy_state=True)(self.put)
        handler(self.definition, "exclusive", enable_lazy_state=True)(self.remove)
        handler(self.definition, "shared", name=_list_all.handler)(self.list_all)

    async def put(self, ctx: restate.ObjectContext, letter: DeadLetter) -> None:
        """Add a dead letter; a repeated one changes nothing."""
        state = _letter_state(ctx, letter.id)
        known = await state.get()
        if known is None or known.redriven != letter.redriven:
            await state.set(letter)

    async def remove(self, ctx: restate.ObjectContext, letter_id: str) -> None:
        """Remove a dead letter."""
        await _letter_state(ctx, letter_id).clear()

    async def list_all(self, ctx: restate.ObjectSharedContext) -> _Letters:
        """Return all dead letters, oldest first."""
        names = [name for name in await ctx.state_keys() if name.startswith(DEAD_LETTER_PREFIX)]
        found = [await _letter_state(ctx, name.removeprefix(DEAD_LETTER_PREFIX)).get() for name in names]
        return _Letters(items=sorted((each for each in found if each), key=lambda each: (each.since, each.id)))


def dead_letter_of(saga: RollbackRequest, step: StepRecord, progress: StepProgress, now: datetime) -> DeadLetter:
    """Return the dead letter of a step."""
    error = progress.error or ""
    return DeadLetter(
        id=saga.letter_id(step),
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
        redriven=progress.redriven,
        since=now,
    )


async def send_dead_letter(ctx: restate.Context, letter: DeadLetter) -> None:
    """Add a dead letter to the index without waiting."""
    await ObjectClient(ctx, _put, INDEX_KEY).send(letter)


async def store_dead_letter(ctx: restate.Context, letter: DeadLetter) -> None:
    """Add a dead letter to the index and wait for it, since a kill also reaches sends."""
    await ObjectClient(ctx, _put, INDEX_KEY).call(letter)


async def remove_dead_letter(ctx: restate.Context, letter_id: str) -> None:
    """Remove a dead letter from the index without waiting."""
    await ObjectClient(ctx, _remove, INDEX_KEY).send(letter_id)


class DeadLetters:
    """Handlers of `DeadLetters`."""

    def __init__(self) -> None:
        self.definition = restate.Service(DEAD_LETTERS, description="Steps that need an operator action.")
        handler(self.definition, name="list", read_only=True, ingress_private=False)(self.list_)
        for action in OperatorAction:
            handler(self.definition, name=action.value, ingress_private=False)(_handler_for(action))
        handler(self.definition, ingress_private=False)(self.act_on_many)

    async def list_(self, ctx: restate.Context, request: DeadLetterListRequest) -> DeadLetterPage:
        """List dead letters, oldest first, with the number per error signature."""
        matches = [each for each in await _all(ctx) if request.matches(each)]
        first = (request.page - 1) * request.page_size
        groups = Counter(each.signature for each in matches)
        return DeadLetterPage(
            items=matches[first : first + request.page_size],
            total=len(matches),
            page=request.page,
            pages=max(1, -(-len(matches) // request.page_size)),
            groups=[DeadLetterGroup(signature=signature, count=count) for signature, count in groups.most_common()],
        )

    async def act_on_many(self, ctx: restate.Context, request: BulkActionRequest) -> BulkActionReceipt:
        """Apply an operator action to all dead letters that match a filter."""
        if not request.filter.model_dump(exclude_none=True):
            raise InvalidInput("invalid input: filter: set at least one field", metadata={"field": "filter"})
        done: list[str] = []
        refused: dict[str, str] = {}
        for letter in [each for each in await _all(ctx) if request.filter.matches(each)]:
            signed_action = request.signed_actions.get(letter.id)
            one = DeadLetterActionRequest(
                id=letter.id, actor=request.actor, reason=request.reason, signed_action=signed_action
            )
            try:
                await _apply(ctx, request.action, one)
            except TerminalError as error:
                if is_own_cancel(error):  # the rest stays as it is
                    raise
                refused[letter.id] = error.message
            else:
                done.append(letter.id)
        return BulkActionReceipt(done=done, refused=refused)


def _handler_for(
    action: OperatorAction,
) -> Callable[[restate.Context, DeadLetterActionRequest], Awaitable[ActionReceipt]]:
    async def apply(ctx: restate.Context, request: DeadLetterActionRequest) -> ActionReceipt:
        return await _apply(ctx, action, request)

    apply.__doc__ = f"{action.value.capitalize()} one dead letter."
    return apply


async def _all(ctx: restate.Context) -> list[DeadLetter]:
    return (await ObjectClient(ctx, _list_all, INDEX_KEY).call()).items


async def _apply(ctx: restate.Context, action: OperatorAction, request: DeadLetterActionRequest) -> ActionReceipt:
    saga_id, _, step = request.id.rpartition("/")
    number, _, position = step.rpartition(".")
    number = number or "1"
    if not saga_id or not all(each.isdecimal() and len(each) <= 9 for each in (number, position)):
        raise NotFound(f"no dead letter '{request.id[:200]}': an ID is {{saga}}/{{position}}", metadata={"field": "id"})
    step_action = StepAction(
        number=int(number),
        position=int(position),
        action=action,
        actor=request.actor,
        reason=request.reason,
        payload=request.payload,
        signed_action=request.signed_action,
    )
    receipt = await ObjectClient(ctx, apply_to_step, saga_id).call(step_action)
    return await _await_outcome(ctx, saga_id, receipt) if request.wait else receipt


async def _await_outcome(ctx: restate.Context, saga_id: str, receipt: ActionReceipt) -> ActionReceipt:
    """Wait until a redriven compensation has ended, and return the receipt with its state."""
    polls = 0
    while receipt.state is CompensationState.PENDING and _OUTCOME_POLLS.permits(polls := polls + 1):
        await ctx.sleep(scaled(_OUTCOME_POLLS.delay_after(polls)), "before the outcome of the redrive")
        found = (await ObjectClient(ctx, rollback_status, saga_id).call()).step_of(receipt.id)
        if found is not None:
            receipt = receipt.model_copy(update={"state": found[1].state})
    return receipt
