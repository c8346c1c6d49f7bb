"""What the saga service serves."""

from __future__ import annotations

from perdure.binding import Definition
from perdure.saga import dead_letters
from perdure.saga.relay import relay
from perdure.saga.rollback import rollbacks


def definitions() -> list[Definition]:
    """Return what to serve: `Rollbacks`, its relay, `DeadLetters` and its index, which belong together."""
    return [rollbacks, relay, *dead_letters.definitions()]
