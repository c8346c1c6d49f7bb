"""Variants of the saga."""

from __future__ import annotations

from enum import StrEnum

from benchmarks import by_hand, with_perdure
from perdure.serving import Servable


class Variant(StrEnum):
    """A variant of the saga."""

    PERDURE = "perdure"
    BY_HAND = "by-hand"
    BY_HAND_UNRECORDED = "by-hand-unrecorded"
    """Without recorded compensations, to measure their cost."""


class Shape(StrEnum):
    """Kind of the steps."""

    CALLS = "calls"
    """A call of a data-plane handler with a run."""
    RUNS = "runs"
    """A run of the workflow."""


def definitions(variant: Variant, shape: Shape, name: str) -> list[Servable]:
    """Return the services of the saga.

    Args:
        variant: The variant.
        shape: Kind of the steps.
        name: The workflow's name.
    """
    calls = shape is Shape.CALLS
    if variant is Variant.PERDURE:
        return with_perdure.definitions(name, calls=calls)
    return by_hand.definitions(name, calls=calls, record=variant is Variant.BY_HAND)
