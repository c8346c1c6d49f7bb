"""The services of the saga feature."""

from __future__ import annotations

from datetime import timedelta

from perdure.handlers import Definition
from perdure.saga import dead_letters
from perdure.saga.dispatch import dispatcher
from perdure.saga.retention import RETENTION, set_retention
from perdure.saga.rollback import rollbacks


def definitions(*, retention: timedelta | None = RETENTION) -> list[Definition]:
    """Return the services to serve: `Rollbacks`, its dispatcher, `DeadLetters` and its index.

    Args:
        retention: How long an ended rollback and its audit log are stored; None for ever. Applies to the process.

    Raises:
        ConfigurationError: The retention is 7 days or less.
    """
    set_retention(retention)
    return [rollbacks, dispatcher, *dead_letters.definitions()]
