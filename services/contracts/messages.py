"""The base of every message, and the field types that more than one contract uses.

The bounds are part of the contract: a value outside of them is a terminal 400 that names the field, before any handler
runs.
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


def _plainly(sentence: LiteralString) -> WrapValidator:
    """Say what is needed in a sentence, instead of the pattern that doesn't match."""

    def check(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            if error.errors()[0]["type"] != "string_pattern_mismatch":
                raise
            raise PydanticCustomError("string_pattern_mismatch", sentence) from error

    return WrapValidator(check)


# Control characters never belong in a name, and PostgreSQL stores no NUL at all.
_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
_printable = _plainly("no line breaks and no other control characters are allowed")
# Zero-width characters and overrides of the reading direction make one name look like another.
_visible = AfterValidator(check_visible)

TripId: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=_PRINTABLE), _visible, _printable
]
"""A trip's id: the caller's choice, and the key of the workflow, the saga and the approval."""

OperationKey: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=512, pattern=_PRINTABLE), _visible, _printable
]
"""The caller's idempotency key of one write, for example ``trip:T1:flight``. Its undo carries the same key."""

Name: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=_PRINTABLE), _visible, _printable
]
"""The name of something in the catalogue: a flight number, a hotel, an account."""

Email: TypeAlias = Annotated[
    str,
    StringConstraints(max_length=254, pattern=r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$"),
    _visible,
    _plainly("an e-mail address is needed, such as ada@example.com"),
]
"""Something that looks like an e-mail address. Only delivery proves that it is one."""

Currency: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[A-Z]{3}$"), _plainly("a currency's code is needed, such as EUR")
]
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


class CompensationRequest(Message):
    """A request to undo the write that carries the same key, whether or not that write arrived, or arrives later."""

    key: OperationKey
    trip_id: TripId
