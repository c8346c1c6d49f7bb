"""Base classes of messages, and field types that contracts share.

The bounds are part of the contract. A value outside them is rejected with a terminal 400 that names the field.
"""

from __future__ import annotations

from typing import Annotated, Any, LiteralString, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from perdure._runtime.plain_text import check_visible


def _explained(sentence: LiteralString) -> WrapValidator:
    """Replace the error of a pattern by a sentence."""

    def check(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            if error.errors()[0]["type"] != "string_pattern_mismatch":
                raise
            raise PydanticCustomError("string_pattern_mismatch", sentence) from error

    return WrapValidator(check)


# PostgreSQL cannot store NUL.
_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
_printable = _explained("no line breaks and no other control characters are allowed")
# Zero-width characters and direction overrides make one name look like another.
_visible = AfterValidator(check_visible)

TripId: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=_PRINTABLE), _visible, _printable
]
"""Trip id, chosen by the caller: the key of the workflow, the saga and the approval."""

OperationKey: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=512, pattern=_PRINTABLE), _visible, _printable
]
"""Idempotency key of a write, for example ``trip:T1:flight``. Its compensation carries the same key."""

Name: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=_PRINTABLE), _visible, _printable
]
"""Name in the catalogue: a flight number, a hotel, an account."""

Email: TypeAlias = Annotated[
    str,
    StringConstraints(max_length=254, pattern=r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$"),
    _visible,
    _explained("an e-mail address is needed, such as ada@example.com"),
]
"""Text in the form of an e-mail address."""

Currency: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[A-Z]{3}$"), _explained("a currency's code is needed, such as EUR")
]
"""An ISO 4217 code in capitals, for example ``EUR``."""

AmountMinor: TypeAlias = Annotated[int, Field(strict=True, gt=0, le=1_000_000_000_000)]
"""Amount in minor units (cents), a JSON integer: ``1.5``, ``"100"`` and ``true`` are rejected."""

SeatCount: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=100)]
"""Number of seats of one reservation."""

NightCount: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=365)]
"""Number of nights."""


class Message(BaseModel):
    """Base of requests and responses: immutable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Write(Message):
    """Base of requests that write. A repeat with the same key has no further effect."""

    key: OperationKey
    trip_id: TripId


class CompensationRequest(Message):
    """Base of requests that compensate the write with the same key, even if that write arrives later."""

    key: OperationKey
    trip_id: TripId
