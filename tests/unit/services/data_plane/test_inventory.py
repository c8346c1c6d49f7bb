"""Reservations of seats and rooms, and the configured faults of hotels."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import select, update

from perdure.errors import NotFound, Refused, error_code
from services.data_plane.flights.tables import FlightRow
from services.data_plane.hotels.tables import HotelRow
from tests.unit.services.data_plane.agency import Agency

ROOT = Path(__file__).parents[4]


async def seats_left(agency: Agency, number: str) -> int:
    async with agency.databases["flights"].snapshot() as connection:
        return (await connection.execute(select(FlightRow.seats_left).where(FlightRow.number == number))).scalar_one()


async def hotel(agency: Agency, name: str) -> tuple[int, int]:
    """Return the remaining rooms and the remaining failures of cancellations."""
    query = select(HotelRow.rooms_left, HotelRow.fails_cancellations).where(HotelRow.name == name)
    async with agency.databases["hotels"].snapshot() as connection:
        rooms_left, fails_cancellations = (await connection.execute(query)).one()
        return rooms_left, fails_cancellations


async def test_seats_are_reserved_and_released(agency: Agency) -> None:
    reservation = await agency.reserve_seats("T1", seats=3)
    assert reservation.trip_id == "T1"
    assert reservation.flight.seats == 3
    assert await seats_left(agency, "PD100") == 99_997
    cancellation = await agency.cancel_seats("T1")
    assert (cancellation.outcome, cancellation.reservation_id) == ("cancelled", reservation.reservation_id)
    assert await agency.cancel_seats("T1") == cancellation
    assert await seats_left(agency, "PD100") == 100_000


async def test_room_is_reserved_and_released(agency: Agency) -> None:
    reservation = await agency.reserve_room("T1", nights=4)
    assert reservation.hotel.nights == 4
    assert await hotel(agency, "Harbour") == (99_999, 0)
    cancellation = await agency.cancel_room("T1")
    assert (cancellation.outcome, cancellation.reservation_id) == ("cancelled", reservation.reservation_id)
    assert await agency.cancel_room("T1") == cancellation
    assert await hotel(agency, "Harbour") == (100_000, 0)


@pytest.mark.parametrize(
    ("book", "status", "code", "message"),
    [
        (lambda a: a.reserve_seats("T1", "PD404"), 409, "seats_sold_out", "flight 'PD404' has 0 seats left"),
        (lambda a: a.reserve_seats("T1", "PD001", 2), 409, "seats_sold_out", "but the trip needs 2"),
        (lambda a: a.reserve_room("T1", "Attic"), 409, "hotel_full", "hotel 'Attic' has no room left"),
    ],
    ids=["no-seats", "too-few-seats", "no-rooms"],
)
async def test_refuse_sold_out_reservation(
    agency: Agency, book: Callable[[Agency], Awaitable[object]], status: int, code: str, message: str
) -> None:
    with pytest.raises(Refused, match=message) as caught:
        await book(agency)
    assert (caught.value.status_code, error_code(caught.value)) == (status, code)
    assert await seats_left(agency, "PD001") == 1
    assert (await hotel(agency, "Attic"))[0] == 0


@pytest.mark.parametrize(
    ("book", "message"),
    [
        (lambda a: a.reserve_seats("T1", "PD999"), "flight.number: there is no flight 'PD999'"),
        (lambda a: a.reserve_room("T1", "Nowhere"), "hotel.name: there is no hotel 'Nowhere'"),
    ],
)
async def test_refusal_names_field_of_unknown_item(
    agency: Agency, book: Callable[[Agency], Awaitable[object]], message: str
) -> None:
    with pytest.raises(NotFound, match=message) as caught:
        await book(agency)
    assert caught.value.status_code == 404
    assert (caught.value.metadata or {})["field"] == message.split(":", maxsplit=1)[0]


async def test_last_seat_is_sold_once(agency: Agency, second_agency: Agency) -> None:
    answers = await asyncio.gather(
        agency.reserve_seats("T1", "PD001"), second_agency.reserve_seats("T2", "PD001"), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert len(refused) == 1
    assert len(answers) - len(refused) == 1
    assert await seats_left(agency, "PD001") == 0


async def test_racing_processes_sell_no_seat_twice(agency: Agency, url: str) -> None:
    code = """
import asyncio, sys
from perdure.errors import Refused
from services.database import Database
from tests.unit.services.data_plane.agency import Agency
async def main(url, name):
    database = Database(url)
    calls = (Agency({"flights": database}).reserve_seats(f"{name}-{n}", "PD200", 7) for n in range(15))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    unexpected = [answer for answer in answers if isinstance(answer, Exception) and not isinstance(answer, Refused)]
    if unexpected: raise unexpected[0]
    print(sum(not isinstance(answer, Refused) for answer in answers))
    await database.dispose()
asyncio.run(main(*sys.argv[1:]))
"""
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, url, str(number)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        for number in range(2)
    ]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(int(out) for out, _ in outputs) == 180 // 7
    assert await seats_left(agency, "PD200") == 180 % 7


async def test_hotel_fails_configured_number_of_cancellations(agency: Agency) -> None:
    await agency.reserve_room("T1", "Stumble")
    for still_to_fail in (1, 0):
        with pytest.raises(Refused, match="'Stumble' failed to cancel") as caught:
            await agency.cancel_room("T1")
        assert (caught.value.status_code, error_code(caught.value)) == (503, "cancellation_failed")
        assert await hotel(agency, "Stumble") == (99_999, still_to_fail)
    assert (await agency.cancel_room("T1")).outcome == "cancelled"
    assert await hotel(agency, "Stumble") == (100_000, 0)


async def test_hotel_fails_cancellations_until_repaired(agency: Agency) -> None:
    await agency.reserve_room("T1", "Fortress")
    for _ in range(3):
        with pytest.raises(Refused, match="'Fortress' failed to cancel"):
            await agency.cancel_room("T1")
    assert await hotel(agency, "Fortress") == (99_999, -1)
    async with agency.databases["hotels"].transaction() as connection:
        await connection.execute(update(HotelRow).where(HotelRow.name == "Fortress").values(fails_cancellations=0))
    assert (await agency.cancel_room("T1")).outcome == "cancelled"


async def test_failing_hotel_accepts_cancellation_without_reservation(agency: Agency) -> None:
    await agency.reserve_room("T1", "Stumble")
    assert (await agency.cancel_room("T2")).outcome == "voided"
    assert await hotel(agency, "Stumble") == (99_999, 2)


async def test_repeated_cancellation_succeeds(agency: Agency) -> None:
    await agency.reserve_room("T1", "Harbour")
    answer = await agency.cancel_room("T1")
    async with agency.databases["hotels"].transaction() as connection:
        await connection.execute(update(HotelRow).values(fails_cancellations=-1))
    assert await agency.cancel_room("T1") == answer


async def test_slow_hotel_holds_no_lock(agency: Agency, second_agency: Agency, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    answer = asyncio.Event()
    thinking = asyncio.Event()

    async def think(seconds: float) -> None:
        asked.append(seconds)
        thinking.set()
        await answer.wait()

    monkeypatch.setattr("services.data_plane.hotels.model.asyncio.sleep", think)
    slow = asyncio.create_task(agency.reserve_room("T1", "Sloth"))
    await thinking.wait()
    assert asked == [2.0]
    await second_agency.reserve_seats("T2")
    assert await hotel(agency, "Sloth") == (100_000, 0)
    answer.set()
    assert (await slow).hotel.name == "Sloth"
