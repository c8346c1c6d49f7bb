"""Where a journal value belongs. A sealed value opens at the place that it was sealed for, and nowhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

__all__ = ["OutputSource", "Place", "PlaceKind", "ValueCodec"]


class PlaceKind(StrEnum):
    """What a value is in the journal."""

    INPUT = "input"
    OUTPUT = "output"
    STATE = "state"
    RUN = "run"
    PROMISE = "promise"
    AWAKEABLE = "awakeable"
    SIGNAL = "signal"


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one value in the journal. Fields that a kind does not need are empty.

    Args:
        kind: What the value is.
        service: The service.
        key: The key of the virtual object or workflow.
        name: The handler of an input or output; the name of a state entry, run, promise or signal; an awakeable's ID.
        invocation: The invocation of an output, a run or a signal.
    """

    kind: PlaceKind
    service: str = ""
    key: str = ""
    name: str = ""
    invocation: str = ""

    @classmethod
    def input(cls, service: str, key: str | None, handler: str) -> Self:
        """Return the place of a handler's input."""
        return cls(PlaceKind.INPUT, service, key or "", handler)

    @classmethod
    def output(cls, service: str, key: str | None, handler: str, invocation: str) -> Self:
        """Return the place of an invocation's output."""
        return cls(PlaceKind.OUTPUT, service, key or "", handler, invocation)

    @classmethod
    def state(cls, service: str, key: str, name: str) -> Self:
        """Return the place of a state entry."""
        return cls(PlaceKind.STATE, service, key, name)

    @classmethod
    def run(cls, service: str, key: str | None, name: str, invocation: str) -> Self:
        """Return the place of the result of ``ctx.run``."""
        return cls(PlaceKind.RUN, service, key or "", name, invocation)

    @classmethod
    def promise(cls, service: str, key: str, name: str) -> Self:
        """Return the place of a workflow's promise."""
        return cls(PlaceKind.PROMISE, service, key, name)

    @classmethod
    def awakeable(cls, id_: str) -> Self:
        """Return the place of an awakeable's completion."""
        return cls(PlaceKind.AWAKEABLE, name=id_)

    @classmethod
    def signal(cls, invocation: str, name: str) -> Self:
        """Return the place of a signal to an invocation."""
        return cls(PlaceKind.SIGNAL, name=name, invocation=invocation)

    def __str__(self) -> str:
        of = "/".join(part for part in (self.service, self.key, self.name) if part)
        at = f" in {self.invocation}" if self.invocation else ""
        return f"{self.kind} {of}{at}"


@dataclass(frozen=True, slots=True)
class OutputSource:
    """What the reader of an output knows about the invocation that it comes from. None is not known.

    Args:
        invocation: The invocation's ID.
        service: Its service.
        key: The key of its virtual object or workflow; empty for a plain service.
        handler: Its handler.
    """

    invocation: str
    service: str | None = None
    key: str | None = None
    handler: str | None = None

    def matches(self, place: Place) -> bool:
        """Tell whether an output's place agrees with all that is known.

        Args:
            place: The place.
        """
        known = ((self.service, place.service), (self.key, place.key), (self.handler, place.name))
        return (
            place.kind is PlaceKind.OUTPUT
            and place.invocation == self.invocation
            and all(mine is None or mine == its for mine, its in known)
        )

    def __str__(self) -> str:
        of = "/".join(part for part in (self.service, self.key, self.handler) if part)
        return " ".join(part for part in ("output", of, "in", self.invocation) if part)


class ValueCodec(ABC):
    """Seals values for their place in the journal, and opens them there."""

    @abstractmethod
    def seal(self, value: bytes, place: Place) -> bytes:
        """Return a value sealed for a place. An empty value is sealed like any other.

        Args:
            value: The value.
            place: Where it belongs.
        """

    @abstractmethod
    def open(self, sealed: bytes, place: Place) -> bytes:
        """Return the value that was sealed for a place.

        Args:
            sealed: The sealed value.
            place: Where it was found.

        Raises:
            UnreadableValue: It is not sealed, was changed, was sealed for another place, or its key is not known here.
        """

    @abstractmethod
    def open_output(self, sealed: bytes, source: OutputSource) -> bytes:
        """Return an invocation's output. An output names its place, so the reader need not know all of it.

        Args:
            sealed: The sealed output.
            source: What is known about the invocation; all of it is checked.

        Raises:
            UnreadableValue: As `open` raises it.
        """
