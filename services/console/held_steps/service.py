"""Queries for held steps, and operator actions on them."""

from __future__ import annotations

from perdure.saga.held_step_messages import (
    MAX_PAGE,
    HeldStepAction,
    HeldStepActionRequest,
    HeldStepBulkReceipt,
    HeldStepBulkRequest,
    HeldStepDetail,
    HeldStepListRequest,
    HeldStepPage,
    HeldStepReceipt,
    act_on_held_steps,
    held_step_action,
    list_held_steps,
    show_held_step,
)
from perdure.saga.held_step_signatures import sign_held_step_action
from services.console.auth.sessions import Session
from services.console.auth.users import utc_now
from services.console.dependencies import Components
from services.console.engine import EngineClient
from services.console.held_steps.schemas import HeldStepActionInput, HeldStepBulkInput
from services.console.problems import ConsoleError, invalid


async def list_page(engine: EngineClient, request: HeldStepListRequest) -> HeldStepPage:
    """Return a page of held steps, oldest first, and the groups by error."""
    return await engine.call(list_held_steps, request)


async def get(engine: EngineClient, held_step_id: str) -> HeldStepDetail:
    """Return a held step, also after its hold, with its audit log."""
    return await engine.call(show_held_step, held_step_id)


async def act(
    components: Components, session: Session, held_step_id: str, action: HeldStepAction, body: HeldStepActionInput
) -> HeldStepReceipt:
    """Act on a held step, signed for the session's user.

    Raises:
        ConsoleError: There is no such step (404), or it was held again or ended since it was shown (409).
    """
    step = (await get(components.engine, held_step_id)).step
    if body.since is not None and step.since != body.since:
        raise ConsoleError(409, "changed", "the step failed again meanwhile; check it, then repeat the action")
    signed_action = sign_held_step_action(
        components.signer.key(session),
        action,
        step,
        reason=body.reason,
        payload=body.payload,
        result=body.result,
        at=utc_now(),
    )
    request = HeldStepActionRequest(
        id=held_step_id,
        actor=session.user.name,
        reason=body.reason,
        payload=body.payload,
        result=body.result,
        signed_action=signed_action,
    )
    return await components.engine.call(held_step_action(action), request)


async def act_on_many(components: Components, session: Session, body: HeldStepBulkInput) -> HeldStepBulkReceipt:
    """Act on all held steps that match, in batches, each signed for the session's user.

    Raises:
        ConsoleError: The filter is empty (400).
    """
    wanted = body.filter.model_dump(exclude_none=True)
    if not wanted:
        raise invalid("the filter is empty: set at least one of saga_id, service, step, signature and before")
    total = HeldStepBulkReceipt()
    after: str | None = None
    while True:
        listing = HeldStepListRequest(**wanted, after=after, limit=MAX_PAGE)
        steps = (await list_page(components.engine, listing)).items
        key, now = components.signer.key(session), utc_now()
        request = HeldStepBulkRequest(
            action=body.action,
            actor=session.user.name,
            reason=body.reason,
            filter=body.filter,
            result=body.result,
            signed_actions={
                step.id: sign_held_step_action(key, body.action, step, reason=body.reason, result=body.result, at=now)
                for step in steps
            },
            after=after,
        )
        receipt = await components.engine.call(act_on_held_steps, request)
        total.done.extend(receipt.done)
        total.refused.update(receipt.refused)
        after = receipt.next
        if after is None:
            return total
