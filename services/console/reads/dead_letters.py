"""Dead letters: what could not be undone, and what operators do about it."""

from __future__ import annotations

import difflib
import json
from typing import Final

from pydantic import BaseModel, JsonValue

from perdure import Target
from perdure.saga.acts import Act
from perdure.saga.messages import (
    ActReceipt,
    ActRequest,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterPage,
    ListRequest,
    ManyActReceipt,
    ManyActRequest,
    TrailEntry,
    rollback_status,
)
from perdure.saga.proofs import sign_act
from services.console.engine import Engine
from services.console.people.persons import utc_now
from services.console.people.sessions import SignedIn
from services.console.problems import ConsoleError, invalid, not_found
from services.console.signing import Signer

MOST_AT_ONCE: Final = 1000
_PAGE: Final = 500

_list: Target[ListRequest, DeadLetterPage] = Target("DeadLetters", "list", ListRequest, DeadLetterPage)
_many: Target[ManyActRequest, ManyActReceipt] = Target("DeadLetters", "act_on_many", ManyActRequest, ManyActReceipt)


class DeadLetterDetail(BaseModel):
    """One dead letter, and what was done about it so far.

    Args:
        letter: The dead letter.
        trail: The acts on its step, in order.
    """

    letter: DeadLetter
    trail: list[TrailEntry]


async def page(engine: Engine, request: ListRequest) -> DeadLetterPage:
    """Return a page of dead letters, the oldest first, and the groups of equal failures.

    Args:
        engine: The engine.
        request: Which ones.

    Raises:
        ConsoleError: Nobody answers.
    """
    return await engine.call(_list, request)


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
    return DeadLetterDetail(letter=letter, trail=[each for each in rollback.trail if each.step == letter.step])


async def _letter(engine: Engine, letter_id: str) -> DeadLetter:
    saga_id = letter_id.rpartition("/")[0]
    if not saga_id:
        raise not_found(f"there is no dead letter '{letter_id[:200]}': an id is {{saga}}/{{position}}")
    found = await page(engine, ListRequest(saga_id=saga_id, page_size=500))
    letter = next((each for each in found.items if each.id == letter_id), None)
    if letter is None:
        raise not_found(f"there is no dead letter '{letter_id[:200]}' (any more): somebody may have decided about it")
    return letter


async def act(
    engine: Engine,
    signer: Signer,
    signed_in: SignedIn,
    letter_id: str,
    what: Act,
    *,
    reason: str,
    payload: JsonValue = None,
    redriven: int | None = None,
) -> ActReceipt:
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
    proof = sign_act(signer.key(signed_in), what, letter, reason=reason, payload=payload, at=utc_now())
    target: Target[ActRequest, ActReceipt] = Target("DeadLetters", what.value, ActRequest, ActReceipt)
    actor = signed_in.person.name
    request = ActRequest(id=letter_id, actor=actor, reason=reason, payload=payload, proof=proof)
    return await engine.call(target, request)


async def act_on_many(
    engine: Engine, signer: Signer, signed_in: SignedIn, what: Act, which: DeadLetterFilter, *, reason: str
) -> ManyActReceipt:
    """Do the same about all dead letters that fit, each signed for who is signed in.

    Args:
        engine: The engine.
        signer: Signs.
        signed_in: Who does it.
        what: What to do.
        which: Which ones.
        reason: Why.

    Raises:
        ConsoleError: The filter is empty, there are more than can be signed at once, or nobody answers.
    """
    fields = which.model_dump(exclude_none=True)
    if not fields:
        raise invalid("say which ones: give at least one of saga_id, service, step and signature")
    first = await page(engine, ListRequest(**fields, page_size=_PAGE))
    if first.total > MOST_AT_ONCE:
        raise ConsoleError(
            409, "too_many", f"{first.total} fit, and {MOST_AT_ONCE} can be done at once: narrow it down"
        )
    letters = list(first.items)
    for number in range(2, first.pages + 1):
        letters += (await page(engine, ListRequest(**fields, page=number, page_size=_PAGE))).items
    key, now = signer.key(signed_in), utc_now()
    proofs = {letter.id: sign_act(key, what, letter, reason=reason, at=now) for letter in letters}
    actor = signed_in.person.name
    return await engine.call(_many, ManyActRequest(act=what, actor=actor, reason=reason, filter=which, proofs=proofs))


def read_payload(text: str) -> JsonValue:
    """Return an edited payload.

    Args:
        text: JSON.

    Raises:
        ConsoleError: It is none.
    """
    try:
        payload: JsonValue = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the payload is no JSON: {error}") from error
    if payload is None:
        raise invalid("the payload is null, which would keep the one there is: redrive without editing instead")
    return payload


def _no_number(name: str) -> JsonValue:
    raise ValueError(f"{name} is no JSON number")


def written(payload: JsonValue) -> str:
    """Return a payload as people edit it.

    Args:
        payload: The payload.
    """
    return json.dumps(payload, indent=2, ensure_ascii=False, sort_keys=False)


class DiffLine(BaseModel):
    """One line of the difference between two payloads.

    Args:
        kind: ``same``, ``gone`` or ``new``.
        text: The line.
    """

    kind: str
    text: str


def difference(before: JsonValue, after: JsonValue) -> list[DiffLine]:
    """Return how two payloads differ, line by line; empty when they don't.

    Args:
        before: What there is.
        after: What is to be sent.
    """
    if before == after:
        return []
    kinds = {" ": "same", "-": "gone", "+": "new"}
    lines = difflib.ndiff(written(before).splitlines(), written(after).splitlines())
    return [DiffLine(kind=kinds[line[0]], text=line[2:]) for line in lines if line[0] in kinds]
