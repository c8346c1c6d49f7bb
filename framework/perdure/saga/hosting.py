"""The services of the saga feature."""

from __future__ import annotations

from datetime import timedelta

from perdure.handlers import Definition
from perdure.saga.dead_letters import DeadLetterIndex, DeadLetters
from perdure.saga.dispatch import RollbackDispatcher
from perdure.saga.retention import RETENTION
from perdure.saga.rollback import Rollbacks


def definitions(*, retention: timedelta | None = RETENTION) -> list[Definition]:
    """Return the services to serve: `Rollbacks`, its dispatcher, `DeadLetters` and its index.

    Args:
        retention: How long an ended rollback and its audit log are stored; None for ever.

    Raises:
        ConfigurationError: The retention is 7 days or less.
    """
    return [
        Rollbacks(retention).definition,
        RollbackDispatcher().definition,
        DeadLetters().definition,
        DeadLetterIndex().definition,
    ]
