"""Queries for dead letters, and operator actions on them."""

from __future__ import annotations

import asyncio

from pydantic import JsonValue

from perdure import Target
from perdure.saga.dead_letter_batches import act_on_batch, list_dead_letters
from perdure.saga.messages import (
    ActionReceipt,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetter,
    DeadLetterActionRequest,
    DeadLetterListRequest,
    DeadLetterPage,
    rollback_status,
)
from perdure.saga.schema import OperatorAction
from perdure.saga.signatures import sign_action
from services.console.auth.sessions import Session
from services.console.auth.users import utc_now
from services.console.dead_letters.payloads import DiffLine, diff
from services.console.dead_letters.schemas import BulkActionInput, DeadLetterActionInput, DeadLetterDetail
from services.console.dependencies import Components
from services.console.engine import EngineClient
from services.console.problems import ConsoleError, invalid, not_found


async def list_page(engine: EngineClient, request: DeadLetterListRequest) -> DeadLetterPage:
    """Return a page of dead letters, oldest first, and the groups by error."""
    return await engine.call(list_dead_letters, request)


async def get(engine: EngineClient, letter_id: str) -> DeadLetterDetail:
    """Return a dead letter; its ID is ``{saga}/{position}``."""
    letter = await _letter(engine, letter_id)
    rollback = await engine.call(rollback_status, key=letter.saga_id)
    return DeadLetterDetail(letter=letter, audit_log=rollback.audit_log_of(letter.id))


async def _letter(engine: EngineClient, letter_id: str) -> DeadLetter:
    saga_id = letter_id.rpartition("/")[0]
    if not saga_id:
        raise not_found(f"no dead letter '{letter_id[:200]}'; an ID has the form {{saga}}/{{position}}")
    page = await list_page(engine, DeadLetterListRequest(id=letter_id, page_size=1))
    for unreadable in page.unreadable:
        raise ConsoleError(409, "unreadable", f"dead letter '{letter_id[:200]}': {unreadable.error}")
    if not page.items:
        raise not_found(f"no dead letter '{letter_id[:200]}'; another operator may have resolved it")
    return page.items[0]


async def act(
    components: Components, session: Session, letter_id: str, action: OperatorAction, body: DeadLetterActionInput
) -> ActionReceipt:
    """Act on a dead letter, signed for the session's user.

    Raises:
        ConsoleError: There is no such dead letter (404), or it was redriven since it was shown (409).
    """
    letter, reason, payload = await _letter(components.engine, letter_id), body.reason, body.payload
    if body.redriven is not None and letter.redriven != body.redriven:
        raise ConsoleError(409, "changed", "the dead letter was redriven meanwhile; check it, then repeat the action")
    key = components.signer.key(session)
    signature = sign_action(key, action, letter, reason=reason, payload=payload, at=utc_now())
    target = Target("DeadLetters", action.value, DeadLetterActionRequest, ActionReceipt)
    actor = session.user.name
    request = DeadLetterActionRequest(
        id=letter_id, actor=actor, reason=reason, payload=payload, signed_action=signature
    )
    return await components.engine.call(target, request)


async def act_on_many(components: Components, session: Session, body: BulkActionInput) -> BulkActionReceipt:
    """Act on a batch of the dead letters that match, each signed for the session's user.

    Raises:
        ConsoleError: The filter is empty (400), or the matching dead letters have changed (409).
    """
    if not body.filter.model_dump(exclude_none=True):
        raise invalid("the filter is empty: set at least one of id, saga_id, service, step and signature")
    until = body.until
    if body.digest is not None:
        wanted = DeadLetterListRequest(**body.filter.model_dump(), page_size=1)
        matching = await list_page(components.engine, wanted)
        if body.digest != matching.digest:
            raise ConsoleError(
                409,
                "changed",
                "the dead letters have changed, so nothing was done; reload the list, then repeat the action",
            )
        until = matching.end
    request = BulkActionRequest(
        action=body.action,
        actor=session.user.name,
        reason=body.reason,
        filter=body.filter,
        after=body.after,
        until=until,
    )
    return await act_on_batch(components.engine, request, components.signer.key(session))


async def compare(engine: EngineClient, letter_id: str, payload: JsonValue) -> tuple[DeadLetter, list[DiffLine]]:
    """Return a dead letter, and the diff from its payload to another one."""
    letter = await _letter(engine, letter_id)
    return letter, await asyncio.to_thread(diff, letter.payload, payload)
