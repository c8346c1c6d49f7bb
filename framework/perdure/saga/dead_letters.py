"""`DeadLetters`: lists the steps whose compensation failed permanently, and applies operator actions to them.

The rollback owns its steps and their audit log. The index only lists the steps that need an operator action.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

import restate

from perdure._runtime.plain_text import shorten
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import done_before, is_own_cancel
from perdure.clients import CallFuture, ObjectClient
from perdure.errors import InvalidInput, NotFound, TerminalError
from perdure.handlers import handler
from perdure.retry import RetryPolicy
from perdure.saga.dead_letter_index import (
    Contents,
    FoundContents,
    ListedLetter,
    Selected,
    SelectedGroup,
    Selection,
    combined_digest,
    put_target,
    read_letters,
    remove_target,
    select_letters,
    shard_of,
)
from perdure.saga.messages import (
    MAX_PAGE,
    ActionReceipt,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetter,
    DeadLetterActionRequest,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterListRequest,
    DeadLetterPage,
    StepAction,
    apply_to_step,
    rollback_status,
)
from perdure.saga.policy import error_signature
from perdure.saga.schema import DEAD_LETTERS, OperatorAction, RollbackRequest, StepProgress, StepRecord
from perdure.saga.status import CompensationState

_OUTCOME_POLLS = RetryPolicy(
    initial_interval=timedelta(milliseconds=200), max_interval=timedelta(seconds=5), max_attempts=64
)

_MAX_GROUPS: Final = 100
_MAX_REFUSAL: Final = 500
_MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
"""Largest size of the dead letters of an answer, unless it has only one: they are in three messages to the engine."""

BATCH_LIMIT: Final = timedelta(seconds=20)
"""How long a batch waits for the answers of its rollbacks, some of which may be paused or lack their encryption key."""


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
    await ObjectClient(ctx, put_target, shard_of(letter.id)).send(letter)


async def store_dead_letter(ctx: restate.Context, letter: DeadLetter) -> None:
    """Add a dead letter to the index and wait for it, since a kill also reaches sends."""
    await ObjectClient(ctx, put_target, shard_of(letter.id)).call(letter)


async def remove_dead_letter(ctx: restate.Context, letter_id: str) -> None:
    """Remove a dead letter from the index without waiting."""
    await ObjectClient(ctx, remove_target, shard_of(letter_id)).send(letter_id)


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
        selected = await select_letters(ctx, selection_of(request))
        contents = contents_of_page(request, selected)
        return page_of(request, selected, contents, await read_letters(ctx, contents))

    async def act_on_many(self, ctx: restate.Context, request: BulkActionRequest) -> BulkActionReceipt:
        """Apply an operator action to a batch of the dead letters that match a filter."""
        if not request.filter.model_dump(exclude_none=True):
            raise InvalidInput("invalid input: filter: set at least one field", metadata={"field": "filter"})
        selection = Selection(filter=request.filter, after=request.after, until=request.until, limit=MAX_PAGE)
        selected = await select_letters(ctx, selection)
        calls = {
            letter_id: _start(
                ctx,
                request.action,
                DeadLetterActionRequest(
                    id=letter_id,
                    actor=request.actor,
                    reason=request.reason,
                    signed_action=request.signed_actions.get(letter_id),
                ),
            )
            for letter_id in (ListedLetter.parse(cursor).id for cursor in selected.cursors)
        }
        refused = await _failures(ctx, calls)
        remaining = selected.following - len(selected.cursors)
        return BulkActionReceipt(
            done=[each for each in calls if each not in refused],
            refused=refused,
            next=selected.cursors[-1] if remaining else None,
            until=request.until or selected.end,
            remaining=remaining,
        )


async def _failures(ctx: restate.Context, calls: dict[str, CallFuture[ActionReceipt]]) -> dict[str, str]:
    """Return the errors of calls, by dead letter."""
    limit = ctx.sleep(BATCH_LIMIT, "time limit of the batch")
    failures: dict[str, str] = {}
    for letter_id, call in calls.items():
        if not await done_before(call.future, limit, "the action on a batch of dead letters"):
            failures[letter_id] = (
                f"no answer within {BATCH_LIMIT.total_seconds():g} s; the action may still take effect. Check its "
                "rollback with `perdure doctor`"
            )
            continue
        try:
            await call
        except TerminalError as error:
            if is_own_cancel(error):  # the rest stays as it is
                raise
            failures[letter_id] = shorten(error.message, _MAX_REFUSAL)
    return failures


def selection_of(request: DeadLetterListRequest) -> Selection:
    """Return the query for the dead letters of a page."""
    return Selection(
        filter=DeadLetterFilter(**request.model_dump(include=set(DeadLetterFilter.model_fields))),
        after=request.after,
        until=request.until,
        limit=request.offset + request.limit,
    )


def contents_of_page(request: DeadLetterListRequest, selected: Selected) -> Contents:
    """Return the contents that a page needs: as many dead letters as fit into an answer, and at least one."""
    cursors = selected.cursors[request.offset :]
    size = 0
    for number, cursor in enumerate(cursors):
        size += ListedLetter.parse(cursor).size
        if number and size > _MAX_PAGE_BYTES:
            cursors = cursors[:number]
            break
    return Contents(letters=cursors, signatures=[group.sample for group in _largest_groups(selected)])


def _largest_groups(selected: Selected) -> list[SelectedGroup]:
    return sorted(selected.groups.values(), key=lambda each: (-each.count, each.sample))[:_MAX_GROUPS]


def page_of(
    request: DeadLetterListRequest, selected: Selected, contents: Contents, found: FoundContents
) -> DeadLetterPage:
    """Return a page of a selection with its contents."""
    cursors = contents.letters
    remaining = max(0, selected.following - request.offset - len(cursors))
    return DeadLetterPage(
        items=[found.letters[each] for each in cursors if each in found.letters],
        unreadable=[found.unreadable[each] for each in cursors if each in found.unreadable],
        total=selected.total,
        page=request.page,
        pages=max(1, -(-selected.total // request.limit)),
        groups=[
            DeadLetterGroup(
                signature=found.signatures[group.sample], count=group.count, digest=combined_digest([group.number])
            )
            for group in _largest_groups(selected)
            if group.sample in found.signatures
        ],
        group_count=len(selected.groups),
        digest=combined_digest(group.number for group in selected.groups.values()),
        next=cursors[-1] if remaining else None,
        remaining=remaining,
        end=selected.end,
    )


def _handler_for(
    action: OperatorAction,
) -> Callable[[restate.Context, DeadLetterActionRequest], Awaitable[ActionReceipt]]:
    async def apply(ctx: restate.Context, request: DeadLetterActionRequest) -> ActionReceipt:
        return await _apply(ctx, action, request)

    apply.__doc__ = f"{action.value.capitalize()} one dead letter."
    return apply


async def _apply(ctx: restate.Context, action: OperatorAction, request: DeadLetterActionRequest) -> ActionReceipt:
    receipt = await _start(ctx, action, request)
    saga_id = request.id.rpartition("/")[0]
    return await _await_outcome(ctx, saga_id, receipt) if request.wait else receipt


def _start(ctx: restate.Context, action: OperatorAction, request: DeadLetterActionRequest) -> CallFuture[ActionReceipt]:
    """Start an operator action."""
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
    return ObjectClient(ctx, apply_to_step, saga_id).call_async(step_action)


async def _await_outcome(ctx: restate.Context, saga_id: str, receipt: ActionReceipt) -> ActionReceipt:
    """Wait until a redriven compensation has ended, and return the receipt with its state."""
    polls = 0
    while receipt.state is CompensationState.PENDING and _OUTCOME_POLLS.permits(polls := polls + 1):
        await ctx.sleep(scaled(_OUTCOME_POLLS.delay_after(polls)), "before the outcome of the redrive")
        found = (await ObjectClient(ctx, rollback_status, saga_id).call()).step_of(receipt.id)
        if found is not None:
            receipt = receipt.model_copy(update={"state": found[1].state})
    return receipt
