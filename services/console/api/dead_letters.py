"""Dead letters: list, look, act on one or on many."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from perdure._runtime.plain_text import Reason
from perdure.saga.messages import (
    ActionReceipt,
    BulkActionReceipt,
    DeadLetterFilter,
    DeadLetterListRequest,
    DeadLetterPage,
)
from perdure.saga.schema import OperatorAction
from services.console.api.errors import ENGINE
from services.console.guard.access import Operator, Viewer
from services.console.parts import EngineOf, PartsOf
from services.console.reads import dead_letters
from services.console.reads.dead_letters import DeadLetterDetail
from services.console.reads.payloads import DiffLine

router = APIRouter(prefix="/api/dead-letters", tags=["dead letters"], responses=ENGINE)

Redriven = Annotated[int, Field(ge=0, le=1_000_000)]


class DeadLetterAction(BaseModel):
    """What to do about one dead letter.

    Args:
        reason: Why.
        payload: With a redrive: the new payload; null keeps the one there is.
        redriven: How often it had been redriven when it was looked at; refused when it was redriven since.
    """

    model_config = ConfigDict(extra="forbid")

    reason: Reason = ""
    payload: JsonValue = None
    redriven: Redriven | None = None


class DeadLettersAction(BaseModel):
    """What to do about all dead letters that fit.

    Args:
        act: What to do.
        filter: Which ones; at least one field.
        reason: Why.
        letters: How often each of them had been redriven when they were looked at, by its id; refused when others fit
            now, or one was redriven since. Null for those that fit now.
    """

    model_config = ConfigDict(extra="forbid")

    act: OperatorAction
    filter: DeadLetterFilter
    reason: Reason = ""
    letters: Annotated[dict[str, Redriven], Field(max_length=dead_letters.MOST_AT_ONCE)] | None = None


class NewPayload(BaseModel):
    """A payload to compare with the one there is."""

    model_config = ConfigDict(extra="forbid")

    payload: JsonValue


@router.get("", operation_id="list_dead_letters")
async def list_dead_letters(
    _: Viewer, engine: EngineOf, wanted: Annotated[DeadLetterListRequest, Query()]
) -> DeadLetterPage:
    """List dead letters, the oldest first, and the groups of equal failures."""
    return await dead_letters.page(engine, wanted)


@router.post("", operation_id="act_on_dead_letters")
async def act_on_many(what: DeadLettersAction, signed_in: Operator, found: PartsOf) -> BulkActionReceipt:
    """Do the same about all dead letters that fit a filter."""
    shown = None if what.letters is None else dead_letters.shown_letters(what.letters)
    return await dead_letters.act_on_many(
        found.engine, found.signer, signed_in, what.act, what.filter, reason=what.reason, shown=shown
    )


@router.post("/{letter_id:path}/compare", operation_id="compare_payload")
async def compare(letter_id: str, new: NewPayload, _: Operator, engine: EngineOf) -> list[DiffLine]:
    """Tell how a payload would differ from the one there is; nothing is changed."""
    _letter, lines = await dead_letters.compare(engine, letter_id, new.payload)
    return lines


@router.post("/{letter_id:path}/{act}", operation_id="act_on_dead_letter")
async def act_on_one(
    letter_id: str, act: OperatorAction, what: DeadLetterAction, signed_in: Operator, found: PartsOf
) -> ActionReceipt:
    """Redrive, skip, resolve, discard or annotate a dead letter."""
    return await dead_letters.act(
        found.engine,
        found.signer,
        signed_in,
        letter_id,
        act,
        reason=what.reason,
        payload=what.payload,
        redriven=what.redriven,
    )


@router.get("/{letter_id:path}", operation_id="show_dead_letter")
async def show_dead_letter(letter_id: str, _: Viewer, engine: EngineOf) -> DeadLetterDetail:
    """Show a dead letter, and what was done about it so far."""
    return await dead_letters.one(engine, letter_id)
