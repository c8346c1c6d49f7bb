"""The ways of writing the saga that can be compared."""

from __future__ import annotations

from enum import StrEnum

from benchmarks import by_hand, with_perdure
from perdure.serving import Servable


class Variant(StrEnum):
    """A way of writing the saga."""

    PERDURE = "perdure"
    BY_HAND = "by-hand"
    BY_HAND_UNRECORDED = "by-hand-unrecorded"
    """Without state: what recording the compensations costs."""


class Shape(StrEnum):
    """What a step is."""

    CALLS = "calls"
    """A call of a data-plane handler, which does its side effect in a run."""
    RUNS = "runs"
    """A run of the workflow's own."""


def definitions(variant: Variant, shape: Shape, name: str) -> list[Servable]:
    """Return the services of the saga.

    Args:
        variant: How it is written.
        shape: What its steps are.
        name: The workflow's name.
    """
    calls = shape is Shape.CALLS
    if variant is Variant.PERDURE:
        return with_perdure.definitions(name, calls=calls)
    return by_hand.definitions(name, calls=calls, record=variant is Variant.BY_HAND)
