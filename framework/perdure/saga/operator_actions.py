"""What an operator can do with a step that could not be undone: pure, no engine."""

from __future__ import annotations

import re
from enum import StrEnum

from pydantic import JsonValue

from perdure.errors import Conflict
from perdure.saga.policy import StepProgress, StepState


class Act(StrEnum):
    """An operator's act on a dead letter.

    ``REDRIVE`` tries the compensation anew, with a full set of attempts and, if given, an edited payload; ``SKIP``
    leaves the step as it is and lets the rollback go on; ``RESOLVE`` says that the step was undone by hand; ``DISCARD``
    closes it without its being undone; ``ANNOTATE`` only adds to the audit log.
    """

    REDRIVE = "redrive"
    SKIP = "skip"
    RESOLVE = "resolve"
    DISCARD = "discard"
    ANNOTATE = "annotate"


_STATE_AFTER = {
    Act.SKIP: StepState.SKIPPED,
    Act.RESOLVE: StepState.RESOLVED,
    Act.DISCARD: StepState.DISCARDED,
}


def apply_action(progress: StepProgress, act: Act, step: str, payload: JsonValue = None) -> StepProgress:
    """Return a step's progress after an operator's act.

    Args:
        progress: The step's progress before.
        act: What is done.
        step: The step's name, for the error.
        payload: The new payload, with a redrive; None keeps the one there is.

    Raises:
        Conflict: The step is no dead letter, so there is nothing to decide about it; or a payload came with an act that
            has no use for it.
    """
    if payload is not None and act is not Act.REDRIVE:
        raise Conflict(f"a payload goes with redrive only, not with {act}", metadata={"field": "payload"})
    if act is Act.ANNOTATE:
        return progress
    if progress.state is not StepState.DEAD_LETTER:
        raise Conflict(
            f"step '{step}' is no dead letter (it is {progress.state}), so it can't be {_PAST[act]}; "
            "perdure sagas show SAGA tells what happened to it",
            metadata={"state": progress.state.value},
        )
    if act is Act.REDRIVE:
        kept = progress.payload if payload is None else payload
        return progress.with_(state=StepState.PENDING, attempts=0, drive=progress.drive + 1, payload=kept)
    return progress.with_(state=_STATE_AFTER[act])


_PAST = {
    Act.REDRIVE: "redriven",
    Act.SKIP: "skipped",
    Act.RESOLVE: "resolved",
    Act.DISCARD: "discarded",
}

_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\b\w*\d\w*\b")


def error_signature(error: str) -> str:
    """Return what equal failures have in common: the message without quoted values, ids and numbers.

    Args:
        error: A failure's message.
    """
    return _VARIABLE.sub("*", error)[:200]
