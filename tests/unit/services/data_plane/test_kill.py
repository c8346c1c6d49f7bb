"""A kill during writes leaves each write complete or absent, and repeated requests complete the work."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from services.data_plane.audit import audit
from tests.unit.services.data_plane.agency import Agency

ROOT = Path(__file__).parents[4]

AT_WORK = """
import asyncio, json, sys
from itertools import count
from services.database import Database
from tests.unit.services.data_plane.agency import Agency

async def book_and_refuse(agency, worker):
    for number in count():
        trip = f"{sys.argv[2]}-{worker}-{number}"
        await (agency.book(trip) if number % 2 else agency.refuse(trip))
        print(trip, flush=True)

async def main(urls):
    agency = Agency({service: Database(url) for service, url in urls.items()})
    await asyncio.gather(*(book_and_refuse(agency, worker) for worker in range(2)))

asyncio.run(main(json.loads(sys.argv[1])))
"""


async def test_killed_process_leaves_valid_data(agency: Agency, urls: Mapping[str, str]) -> None:
    finished: list[str] = []
    for life in ("first", "second"):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", AT_WORK, json.dumps(dict(urls)), life, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            finished += [(await process.stdout.readline()).decode().strip() for _ in range(5)]
        process.kill()
        await process.communicate()
        assert (await audit(urls)).ok
    # Repeating all requests with the same keys completes the interrupted trips.
    assert all(finished)
    begun = [f"{life}-{worker}-{number}" for life, worker, number in product(("first", "second"), range(2), range(8))]
    for trip in begun:
        await (agency.book(trip) if int(trip.rsplit("-", maxsplit=1)[1]) % 2 else _refuse(agency, trip))
    report = await audit(urls, settled=True)
    assert report.ok, report
    assert set(finished) <= set(begun)
    assert (report.confirmed, report.refused, report.open) == (len(begun) / 2, len(begun) / 2, 0)


async def _refuse(agency: Agency, trip: str) -> None:
    # Compensations succeed whether or not their write arrived.
    await agency.refund(trip)
    await agency.cancel_room(trip)
    await agency.cancel_seats(trip)
    await agency.notify(trip, "trip-refused")
