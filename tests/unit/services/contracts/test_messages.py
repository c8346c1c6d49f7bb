from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from perdure._runtime.serdes import invalid_input
from services.contracts import flights, hotels, notifications, payments, trips
from services.contracts.payments import PaymentRequest
from services.contracts.trips import TripConfirmation, TripRequest

EXAMPLE: dict[str, Any] = {
    "traveller": "ada@example.com",
    "flight": {"number": "PD100", "seats": 1},
    "hotel": {"name": "Harbour", "nights": 2},
    "payment": {"account": "acct-ada", "amount_minor": 50000, "currency": "EUR"},
}

TARGETS = [
    flights.reserve,
    flights.cancel,
    hotels.reserve,
    hotels.cancel,
    payments.charge,
    payments.refund,
    notifications.notify,
    trips.book,
    trips.status,
]


def refused_fields(model: type[BaseModel], document: Any) -> set[str]:
    """Parse a JSON document and return the names of the refused fields."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(document))
    return {".".join(str(part) for part in error["loc"]) for error in caught.value.errors()}


def changed(path: str, value: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(EXAMPLE))
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    place[last] = value
    return document


def test_contract_example_round_trips() -> None:
    request = TripRequest.model_validate_json(json.dumps(EXAMPLE))
    assert json.loads(request.model_dump_json()) == EXAMPLE


@pytest.mark.parametrize("amount", [1.5, 1.0, "100", True, 0, -1, None, 10**13, 2**70, [100]])
def test_refuse_amount_other_than_positive_integer(amount: Any) -> None:
    assert refused_fields(TripRequest, changed("payment.amount_minor", amount)) == {"payment.amount_minor"}


@pytest.mark.parametrize("literal", ["1e2", "100.0", "NaN", "Infinity"])
def test_refuse_amount_written_as_float(literal: str) -> None:
    document = f'{{"account": "acct-ada", "amount_minor": {literal}, "currency": "EUR"}}'
    with pytest.raises(ValidationError):
        PaymentRequest.model_validate_json(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("traveller", "ada"),
        ("traveller", "ada @example.com"),
        ("traveller", "a" * 250 + "@example.com"),
        ("traveller", ""),
        ("flight.number", ""),
        ("flight.number", "P" * 65),
        ("flight.number", "PD\u0000"),
        ("flight.seats", 0),
        ("flight.seats", 101),
        ("flight.seats", 1.5),
        ("flight.seats", "1"),
        ("hotel.name", "Har\nbour"),
        ("hotel.nights", 0),
        ("hotel.nights", 366),
        ("hotel.nights", True),
        ("payment.account", None),
        ("payment.currency", "eur"),
        ("payment.currency", "EURO"),
        ("payment.currency", "EUR\n"),
        ("surprise", 1),
        ("payment.surprise", 1),
    ],
)
def test_refusal_names_invalid_field(path: str, value: Any) -> None:
    assert refused_fields(TripRequest, changed(path, value)) == {path}


@pytest.mark.parametrize("path", ["traveller", "flight", "hotel", "payment"])
def test_refusal_names_missing_field(path: str) -> None:
    document = {name: value for name, value in EXAMPLE.items() if name != path}
    assert refused_fields(TripRequest, document) == {path}


def test_trip_id_length_is_bounded() -> None:
    fields: dict[str, Any] = {"flight_reservation_id": "f", "hotel_reservation_id": "h", "payment_id": "p"}
    assert TripConfirmation(trip_id="T" * 128, **fields).status == "confirmed"
    assert refused_fields(TripConfirmation, {"trip_id": "T" * 10_000, **fields}) == {"trip_id"}


def test_messages_are_immutable() -> None:
    request = TripRequest.model_validate(EXAMPLE)
    with pytest.raises(ValidationError, match="frozen"):
        request.payment.amount_minor = 1  # type: ignore[misc]


@given(
    st.integers(min_value=1, max_value=10**12),
    st.from_regex(r"[A-Z]{3}", fullmatch=True),
    st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=64),
)
def test_payments_within_bounds_round_trip(amount: int, currency: str, account: str) -> None:
    payment = PaymentRequest(account=account, amount_minor=amount, currency=currency)
    assert PaymentRequest.model_validate_json(payment.model_dump_json()) == payment


def test_target_names_are_unique() -> None:
    names = [str(target) for target in TARGETS]
    assert names == [
        "Flights/reserve",
        "Flights/cancel",
        "Hotels/reserve",
        "Hotels/cancel",
        "Payments/charge",
        "Payments/refund",
        "Notifications/notify",
        "Trips/run",
        "Trips/status",
    ]


@pytest.mark.parametrize("target", TARGETS[:-1], ids=str)
def test_requests_refuse_unknown_fields(target: Any) -> None:
    assert target.input.model_config["extra"] == "forbid"
    assert target.input.model_config["frozen"] is True


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("traveller", "ada", "an e-mail address is needed, such as ada@example.com"),
        ("payment.currency", "euro", "a currency's code is needed, such as EUR"),
        ("hotel.name", "Har\nbour", "no line breaks and no other control characters are allowed"),
        ("hotel.name", "", "String should have at least 1 character"),
        ("flight.number", 7, "Input should be a valid string"),
        ("colour", "red", "there is no such field"),
    ],
)
def test_refusal_explains_invalid_value(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TripRequest.model_validate_json(json.dumps(changed(path, value)))
    assert invalid_input(caught.value).message == f"invalid input: {path}: {sentence}"


def test_schema_contains_name_patterns() -> None:
    schema = TripRequest.model_json_schema()
    assert schema["properties"]["traveller"]["pattern"].startswith("^[^@")
    assert schema["$defs"]["PaymentRequest"]["properties"]["currency"]["pattern"] == "^[A-Z]{3}$"
