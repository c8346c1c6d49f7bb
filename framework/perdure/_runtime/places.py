"""Places of journal values. A sealed value can be opened only at the place for which it was sealed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class PlaceKind(StrEnum):
    """Kind of a journal value."""

    INPUT = "input"
    OUTPUT = "output"
    STATE = "state"
    RUN = "run"
    PROMISE = "promise"
    AWAKEABLE = "awakeable"
    SIGNAL = "signal"


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a value in the journal. Fields that do not apply to the kind are empty.

    Args:
        kind: Kind of the value.
        service: The service.
        key: Key of the virtual object or workflow.
        name: Handler of an input or output; name of a state entry, run, promise or signal; ID of an awakeable.
        invocation: Invocation of an output, a run or a signal.
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
    """Known facts about the invocation of an output; None for an unknown field.

    Args:
        invocation: The invocation's ID.
        service: Its service.
        key: The key of its virtual object or workflow; empty for a service.
        handler: Its handler.
    """

    invocation: str
    service: str | None = None
    key: str | None = None
    handler: str | None = None

    def matches(self, place: Place) -> bool:
        """Return whether the place of an output agrees with all known fields."""
        fields = ((self.service, place.service), (self.key, place.key), (self.handler, place.name))
        return (
            place.kind is PlaceKind.OUTPUT
            and place.invocation == self.invocation
            and all(known is None or known == actual for known, actual in fields)
        )

    def __str__(self) -> str:
        of = "/".join(part for part in (self.service, self.key, self.handler) if part)
        return " ".join(part for part in ("output", of, "in", self.invocation) if part)


class ValueCodec(ABC):
    """Seals values for their place in the journal and opens them there."""

    @abstractmethod
    def seal(self, value: bytes, place: Place) -> bytes:
        """Return a value, which may be empty, sealed for a place."""

    @abstractmethod
    def open(self, sealed: bytes, place: Place) -> bytes:
        """Return the value that was sealed for a place.

        Raises:
            UnreadableValue: The value is not sealed, was changed, belongs to another place, or its key is missing.
        """

    @abstractmethod
    def keyed_hashes(self, text: str) -> list[str]:
        """Return a hash of a text for each key, that of the sealing key first. Equal texts have equal hashes."""

    @abstractmethod
    def open_output(self, sealed: bytes, source: OutputSource) -> bytes:
        """Return the output of an invocation. The output contains its place, which must match the source.

        Raises:
            UnreadableValue: As from `open`.
        """
