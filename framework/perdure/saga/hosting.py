"""The services of the saga feature."""

from __future__ import annotations

from datetime import timedelta

from perdure.errors import ConfigurationError
from perdure.handlers import Definition
from perdure.saga.dead_letter_index import DeadLetterIndex
from perdure.saga.dead_letters import DeadLetters
from perdure.saga.dispatch import RollbackDispatcher
from perdure.saga.held_steps import HeldStepIndex, HeldSteps, SagaHeldSteps
from perdure.saga.operations import SagaOperations
from perdure.saga.rollback import RETENTION, ExecutionRollbacks, Rollbacks

_SHORTEST_RETENTION = timedelta(hours=1)


def definitions(*, retention: timedelta | None = RETENTION) -> list[Definition]:
    """Return the services to serve: those of rollbacks, dead letters, held steps and operations on sagas.

    Args:
        retention: How long the results and audit logs of these are stored; None for ever.

    Raises:
        ConfigurationError: The retention is less than an hour; waiters still have to read the result.
    """
    if retention is not None and retention < _SHORTEST_RETENTION:
        raise ConfigurationError(f"a rollback retention of {retention} is too short: set an hour or more, or None")
    return [
        Rollbacks().definition,
        ExecutionRollbacks(retention).definition,
        RollbackDispatcher().definition,
        DeadLetters().definition,
        DeadLetterIndex().definition,
        HeldSteps().definition,
        SagaHeldSteps(retention).definition,
        HeldStepIndex().definition,
        SagaOperations(retention).definition,
    ]
