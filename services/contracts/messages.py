"""The base of every message, and the field types that more than one contract uses.

The bounds are part of the contract: a value outside of them is a terminal 400 that names the field, before any handler
runs.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# Control characters never belong in a name, and PostgreSQL stores no NUL at all.
_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"

TripId: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_PRINTABLE)]
"""A trip's id: the caller's choice, and the key of the workflow, the saga and the approval."""

OperationKey: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=_PRINTABLE)]
"""The caller's idempotency key of one write, for example ``trip:T1:flight``. Its undo carries the same key."""

Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_PRINTABLE)]
"""The name of something in the catalogue: a flight number, a hotel, an account."""

Email: TypeAlias = Annotated[
    str, StringConstraints(max_length=254, pattern=r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$")
]
"""Something that looks like an e-mail address. Only delivery proves that it is one."""

Currency: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
"""An ISO 4217 code in capitals, for example ``EUR``."""

AmountMinor: TypeAlias = Annotated[int, Field(strict=True, gt=0, le=1_000_000_000_000)]
"""Money in minor units (cents), a whole number: ``1.5``, ``"100"`` and ``true`` are refused, never rounded or read."""

SeatCount: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=100)]
"""How many seats one reservation takes."""

NightCount: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=365)]
"""How many nights a room is kept."""


class Message(BaseModel):
    """A request or response: immutable, and without any field that the contract does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Write(Message):
    """A request that changes something in the data plane. It may be sent any number of times, and acts once."""

    key: OperationKey
    trip_id: TripId


class Undo(Message):
    """A request to undo the write that carries the same key, whether or not that write arrived, or arrives later."""

    key: OperationKey
    trip_id: TripId
