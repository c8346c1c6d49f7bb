from __future__ import annotations

import json
import shlex

from services.contracts.trips import TripRequest
from services.runtime.booking import ORDINARY, curl, new_trip_id


def test_curl_command_is_one_quoted_line():
    order = ORDINARY.model_copy(update={"traveller": "o'hara@example.com"})
    line = curl("http://127.0.0.1:8080", "trip 1/2", order)
    assert "\n" not in line
    program, *arguments = shlex.split(line)
    assert program == "curl"
    assert "http://127.0.0.1:8080/Trips/trip%201%2F2/run" in arguments
    assert "content-type: application/json" in arguments
    assert TripRequest.model_validate(json.loads(arguments[arguments.index("-d") + 1])) == order


def test_trip_ids_are_unique():
    assert len({new_trip_id() for _ in range(1000)}) == 1000
