"""Queries for dead letters, and operator actions on them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue

from perdure import Target
from perdure.saga.messages import (
    ActionReceipt,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetter,
    DeadLetterActionRequest,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterListRequest,
    DeadLetterPage,
    rollback_status,
)
from perdure.saga.schema import OperatorAction
from perdure.saga.signatures import sign_action
from perdure.security.encodings import json_digest
from services.console.auth.sessions import Session
from services.console.auth.users import utc_now
from services.console.dead_letters.payloads import DiffLine, diff
from services.console.dead_letters.schemas import MAX_BULK, DeadLetterActionInput, DeadLetterDetail
from services.console.dependencies import Components
from services.console.engine import EngineClient
from services.console.problems import ConsoleError, invalid, not_found

_QUERY_SIZE: Final = 500

_list = Target("DeadLetters", "list", DeadLetterListRequest, DeadLetterPage)
_act_on_many = Target("DeadLetters", "act_on_many", BulkActionRequest, BulkActionReceipt)


async def list_page(engine: EngineClient, request: DeadLetterListRequest) -> DeadLetterPage:
    """Return a page of dead letters, oldest first, and the groups by error."""
    return await engine.call(_list, request)


async def list_page_with_digests(
    engine: EngineClient, request: DeadLetterListRequest
) -> tuple[DeadLetterPage, dict[str, str]]:
    """Return a page of dead letters, and the digest of each group by error, for bulk actions.

    Page, counts and digests come from one snapshot, so a bulk action applies to what the page shows. There are no
    digests when more dead letters match than a bulk action permits.
    """
    letters, total = await _matching(engine, request)
    if total > MAX_BULK:
        return await list_page(engine, request), {}
    groups: dict[str, dict[str, int]] = {}
    for letter in letters:
        groups.setdefault(letter.signature, {})[letter.id] = letter.redriven
    start = (request.page - 1) * request.page_size
    counts = Counter({signature: len(group) for signature, group in groups.items()}).most_common()
    page = DeadLetterPage(
        items=letters[start : start + request.page_size],
        total=len(letters),
        page=request.page,
        pages=max(1, -(-len(letters) // request.page_size)),
        groups=[DeadLetterGroup(signature=signature, count=count) for signature, count in counts],
    )
    return page, {signature: letters_digest(group) for signature, group in groups.items()}


async def _matching(engine: EngineClient, criteria: DeadLetterFilter) -> tuple[list[DeadLetter], int]:
    """Return the matching dead letters and their number; only some when a bulk action does not permit as many."""
    fields = criteria.model_dump(include=set(DeadLetterFilter.model_fields))
    first = await list_page(engine, DeadLetterListRequest(**fields, page_size=_QUERY_SIZE))
    letters = {letter.id: letter for letter in first.items}
    if first.total <= MAX_BULK:
        for number in range(2, first.pages + 1):
            page = await list_page(engine, DeadLetterListRequest(**fields, page=number, page_size=_QUERY_SIZE))
            letters |= {letter.id: letter for letter in page.items}
    return list(letters.values()), first.total


def letters_digest(letters: Mapping[str, int]) -> str:
    """Return the digest of dead letters, given their redrive counts by ID."""
    return json_digest(dict(letters))


async def get(engine: EngineClient, letter_id: str) -> DeadLetterDetail:
    """Return a dead letter; its ID is ``{saga}/{position}``."""
    letter = await _letter(engine, letter_id)
    rollback = await engine.call(rollback_status, key=letter.saga_id)
    return DeadLetterDetail(letter=letter, audit_log=rollback.audit_log_of(letter.id))


async def _letter(engine: EngineClient, letter_id: str) -> DeadLetter:
    saga_id = letter_id.rpartition("/")[0]
    if not saga_id:
        raise not_found(f"no dead letter '{letter_id[:200]}'; an ID has the form {{saga}}/{{position}}")
    page = await list_page(engine, DeadLetterListRequest(saga_id=saga_id, page_size=_QUERY_SIZE))
    letter = next((one for one in page.items if one.id == letter_id), None)
    if letter is None:
        raise not_found(f"no dead letter '{letter_id[:200]}'; another operator may have resolved it")
    return letter


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


async def act_on_many(
    components: Components,
    session: Session,
    action: OperatorAction,
    criteria: DeadLetterFilter,
    *,
    reason: str,
    digest: str | None = None,
) -> BulkActionReceipt:
    """Act on all dead letters that match, each signed for the session's user.

    Args:
        components: The components.
        session: The session of the actor.
        action: The action.
        criteria: The filter.
        reason: The reason.
        digest: The digest of the dead letters as shown to the actor; None for those that match now.

    Raises:
        ConsoleError: The filter is empty (400), or the matching dead letters have changed or are too many (409).
    """
    if not criteria.model_dump(exclude_none=True):
        raise invalid("the filter is empty: set at least one of saga_id, service, step and signature")
    letters, total = await _matching(components.engine, criteria)
    if total > MAX_BULK:
        raise ConsoleError(
            409, "too_many", f"{total} dead letters match, at most {MAX_BULK} permitted: narrow the filter"
        )
    if digest is not None and digest != letters_digest({letter.id: letter.redriven for letter in letters}):
        raise ConsoleError(
            409,
            "changed",
            "the dead letters have changed, so nothing was done; reload the list, then repeat the action",
        )
    key, now = components.signer.key(session), utc_now()
    signatures = {letter.id: sign_action(key, action, letter, reason=reason, at=now) for letter in letters}
    actor = session.user.name
    return await components.engine.call(
        _act_on_many,
        BulkActionRequest(action=action, actor=actor, reason=reason, filter=criteria, signed_actions=signatures),
    )


async def compare(engine: EngineClient, letter_id: str, payload: JsonValue) -> tuple[DeadLetter, list[DiffLine]]:
    """Return a dead letter, and the diff from its payload to another one."""
    letter = await _letter(engine, letter_id)
    return letter, await asyncio.to_thread(diff, letter.payload, payload)
