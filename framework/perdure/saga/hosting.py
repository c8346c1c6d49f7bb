"""What the saga service serves."""

from __future__ import annotations

from datetime import timedelta

from perdure.handlers import Definition
from perdure.saga import dead_letters, retention
from perdure.saga.dispatcher import dispatcher
from perdure.saga.rollback import rollbacks


def definitions(*, forget_after: timedelta | None = retention.FORGET_AFTER) -> list[Definition]:
    """Return what to serve: `Rollbacks`, its dispatcher, `DeadLetters` and its index, which belong together.

    Args:
        forget_after: After how long a rollback that is over is forgotten, the audit log of its operators' acts
            included;
            None for never. It holds for the process.

    Raises:
        ConfigurationError: It is not longer than the engine remembers what came of undoing a step: 7 days.
    """
    retention.forget_after(forget_after)
    return [rollbacks, dispatcher, *dead_letters.definitions()]
