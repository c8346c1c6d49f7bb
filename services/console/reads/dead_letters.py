"""Dead letters: what could not be undone, and what operators do about it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, JsonValue

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
from perdure.saga.schema import AuditEntry, OperatorAction
from perdure.saga.signatures import sign_action
from perdure.security.encodings import payload_digest
from services.console.engine import Engine
from services.console.people.persons import utc_now
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError, invalid, not_found
from services.console.reads import payloads
from services.console.reads.payloads import DiffLine
from services.console.signing import Signer

MOST_AT_ONCE: Final = 1000
_PAGE: Final = 500

_list: Target[DeadLetterListRequest, DeadLetterPage] = Target(
    "DeadLetters", "list", DeadLetterListRequest, DeadLetterPage
)
_many: Target[BulkActionRequest, BulkActionReceipt] = Target(
    "DeadLetters", "act_on_many", BulkActionRequest, BulkActionReceipt
)


class DeadLetterDetail(BaseModel):
    """One dead letter, and what was done about it so far.

    Args:
        letter: The dead letter.
        audit_log: The acts on its step, in order.
    """

    letter: DeadLetter
    audit_log: list[AuditEntry]


async def page(engine: Engine, request: DeadLetterListRequest) -> DeadLetterPage:
    """Return a page of dead letters, the oldest first, and the groups of equal failures.

    Args:
        engine: The engine.
        request: Which ones.

    Raises:
        ConsoleError: Nobody answers.
    """
    return await engine.call(_list, request)


async def page_to_act_on(engine: Engine, request: DeadLetterListRequest) -> tuple[DeadLetterPage, dict[str, str]]:
    """Return a page of dead letters for who may act on whole groups: with the digest of each, by its signature.

    The page, its counts and the digests are of one look, so that what is counted is what will be acted on. When more
    fit than can be done at once, there is no digest.

    Args:
        engine: The engine.
        request: Which ones.

    Raises:
        ConsoleError: Nobody answers.
    """
    letters, total = await _fitting(engine, request)
    if total > MOST_AT_ONCE:
        return await page(engine, request), {}
    groups: dict[str, dict[str, int]] = {}
    for letter in letters:
        groups.setdefault(letter.signature, {})[letter.id] = letter.redriven
    begin = (request.page - 1) * request.page_size
    counts = Counter({signature: len(those) for signature, those in groups.items()}).most_common()
    found = DeadLetterPage(
        items=letters[begin : begin + request.page_size],
        total=len(letters),
        page=request.page,
        pages=max(1, -(-len(letters) // request.page_size)),
        groups=[DeadLetterGroup(signature=signature, count=count) for signature, count in counts],
    )
    return found, {signature: shown_letters(those) for signature, those in groups.items()}


async def _fitting(engine: Engine, which: DeadLetterFilter) -> tuple[list[DeadLetter], int]:
    """Return all dead letters that fit, and how many there are; only some when more fit than can be done at once."""
    fields = which.model_dump(include=set(DeadLetterFilter.model_fields))
    first = await page(engine, DeadLetterListRequest(**fields, page_size=_PAGE))
    letters = {letter.id: letter for letter in first.items}
    if first.total <= MOST_AT_ONCE:
        for number in range(2, first.pages + 1):
            more = await page(engine, DeadLetterListRequest(**fields, page=number, page_size=_PAGE))
            letters |= {letter.id: letter for letter in more.items}
    return list(letters.values()), first.total


def shown_letters(letters: Mapping[str, int]) -> str:
    """Return the digest of dead letters as they are shown.

    Args:
        letters: How often each was redriven, by its id.
    """
    return payload_digest(dict(letters))


async def one(engine: Engine, letter_id: str) -> DeadLetterDetail:
    """Return a dead letter.

    Args:
        engine: The engine.
        letter_id: ``{saga}/{position}``.

    Raises:
        ConsoleError: There is none, or nobody answers.
    """
    letter = await _letter(engine, letter_id)
    rollback = await engine.call(rollback_status, key=letter.saga_id)
    return DeadLetterDetail(letter=letter, audit_log=rollback.audit_log_of(letter.position))


async def _letter(engine: Engine, letter_id: str) -> DeadLetter:
    saga_id = letter_id.rpartition("/")[0]
    if not saga_id:
        raise not_found(f"there is no dead letter '{letter_id[:200]}': an id is {{saga}}/{{position}}")
    found = await page(engine, DeadLetterListRequest(saga_id=saga_id, page_size=500))
    letter = next((each for each in found.items if each.id == letter_id), None)
    if letter is None:
        raise not_found(f"there is no dead letter '{letter_id[:200]}' (any more): somebody may have decided about it")
    return letter


async def act(
    engine: Engine,
    signer: Signer,
    signed_in: SignedIn,
    letter_id: str,
    what: OperatorAction,
    *,
    reason: str,
    payload: JsonValue = None,
    redriven: int | None = None,
) -> ActionReceipt:
    """Do something about a dead letter, signed for who is signed in.

    Args:
        engine: The engine.
        signer: Signs.
        signed_in: Who does it.
        letter_id: The dead letter.
        what: What to do.
        reason: Why.
        payload: With a redrive: the new payload; None keeps the one there is.
        redriven: How often it had been redriven when it was shown, so that nobody acts on what they have not seen; None
            for how it is now.

    Raises:
        ConsoleError: It is no dead letter (any more), was redriven meanwhile, or nobody answers.
    """
    letter = await _letter(engine, letter_id)
    if redriven is not None and letter.redriven != redriven:
        raise ConsoleError(409, "changed", "somebody has redriven it since you looked: look again, then decide")
    proof = sign_action(signer.key(signed_in), what, letter, reason=reason, payload=payload, at=utc_now())
    target: Target[DeadLetterActionRequest, ActionReceipt] = Target(
        "DeadLetters", what.value, DeadLetterActionRequest, ActionReceipt
    )
    actor = signed_in.person.name
    request = DeadLetterActionRequest(id=letter_id, actor=actor, reason=reason, payload=payload, proof=proof)
    return await engine.call(target, request)


async def act_on_many(
    engine: Engine,
    signer: Signer,
    signed_in: SignedIn,
    what: OperatorAction,
    which: DeadLetterFilter,
    *,
    reason: str,
    shown: str | None = None,
) -> BulkActionReceipt:
    """Do the same about all dead letters that fit, each signed for who is signed in.

    Args:
        engine: The engine.
        signer: Signs.
        signed_in: Who does it.
        what: What to do.
        which: Which ones.
        reason: Why.
        shown: The digest of those that they were shown, so that it is these, and no others, which they sign; None for
            those that fit now.

    Raises:
        ConsoleError: The filter is empty, others fit than were shown, there are more than can be signed at once, or
            nobody answers.
    """
    if not which.model_dump(exclude_none=True):
        raise invalid("say which ones: give at least one of saga_id, service, step and signature")
    letters, total = await _fitting(engine, which)
    if total > MOST_AT_ONCE:
        raise ConsoleError(409, "too_many", f"{total} fit, and {MOST_AT_ONCE} can be done at once: narrow it down")
    if shown is not None and shown != shown_letters({letter.id: letter.redriven for letter in letters}):
        raise ConsoleError(
            409,
            "changed",
            "the dead letters have changed since you looked, so nothing was done: load the list again, look, then "
            "decide",
        )
    key, now = signer.key(signed_in), utc_now()
    proofs = {letter.id: sign_action(key, what, letter, reason=reason, at=now) for letter in letters}
    actor = signed_in.person.name
    return await engine.call(
        _many, BulkActionRequest(act=what, actor=actor, reason=reason, filter=which, proofs=proofs)
    )


async def compare(engine: Engine, letter_id: str, payload: JsonValue) -> tuple[DeadLetter, list[DiffLine]]:
    """Return a dead letter, and how a payload differs from the one it has.

    Args:
        engine: The engine.
        letter_id: The dead letter.
        payload: The payload.

    Raises:
        ConsoleError: It is no dead letter (any more), one of the payloads is too large, or nobody answers.
    """
    letter = await _letter(engine, letter_id)
    return letter, await asyncio.to_thread(payloads.difference, letter.payload, payload)
