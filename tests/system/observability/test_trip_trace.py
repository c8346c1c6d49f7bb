"""Traces of trips across processes."""

from __future__ import annotations

import httpx
import pytest

from services.runtime.booking import ORDINARY, new_trip_id
from tests.support import eventually
from tests.system.observability.conftest import Observed
from tests.system.observability.traces import TraceTree, lines, linked_to, trace_of
from tests.system.scenarios.scenarios import order

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]


async def tree_of(observed: Observed, trip_id: str) -> TraceTree:
    async def found() -> TraceTree | None:
        tree = trace_of(observed.receiver.spans(), trip_id)
        return tree if tree is not None and tree.is_complete else None

    return await eventually(found, what=f"complete trace of {trip_id}", within=30)


async def test_trace_reaches_from_ingress_to_sql(observed):
    trip_id = new_trip_id()
    assert await observed.harness.book(trip_id, ORDINARY) == "confirmed"
    tree = await tree_of(observed, trip_id)
    text = "\n".join(lines(tree))
    assert {span.service for span in tree.spans} == {
        "Restate",
        "orchestrator",
        "flights",
        "hotels",
        "payments",  # one-way notifications start their own trace
    }, text
    for service, handler, step in (
        ("flights", "Flights/reserve", "flight"),
        ("hotels", "Hotels/reserve", "hotel"),
        ("payments", "Payments/charge", "payment"),
    ):
        statements = [span for span in tree.spans if span.service == service and "db.statement" in span.attributes]
        assert any("INSERT" in span.attributes["db.statement"] for span in statements), text
        names = [span.name for span in tree.path(statements[-1])]
        assert names[:3] == [
            "ingress Trips/{key}/run",
            "invocation-start Trips/{key}/run",
            "invocation-attempt Trips/{key}/run",
        ], text
        assert handler in names
        assert any(name.startswith("run ") for name in names), text
        (step_span,) = [span for span in tree.spans if span.name == f"step {step}"]
        assert step_span.attributes["perdure.saga.id"] == trip_id
    values = [value for span in tree.spans for value in span.attributes.values()]
    assert not any("ada@example.com" in value for value in values), "traces must not contain the traveller"


async def test_rollback_is_linked_to_its_trip(observed):
    trip_id = new_trip_id()
    answer = await observed.harness.book(trip_id, order(flight="PD100", account="acct-declined"))
    assert answer != "confirmed"
    tree = await tree_of(observed, trip_id)

    async def rollback() -> TraceTree | None:
        trees = linked_to(observed.receiver.spans(), tree)
        found = [each for each in trees if any(span.name == "ExecutionRollbacks/run" for span in each.spans)]
        return found[0] if found else None

    linked = await eventually(rollback, what="a rollback that is linked to the trip")
    assert {span.attributes["perdure.saga.id"] for span in linked.spans if span.name == "ExecutionRollbacks/run"} == {
        trip_id
    }


async def test_services_follow_the_sampling_decision(observed):
    unsampled, sampled = new_trip_id(), new_trip_id()
    not_sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    async with httpx.AsyncClient(trust_env=False, base_url=observed.harness.platform.topology.ingress_url) as caller:
        body, headers = ORDINARY.model_dump(mode="json"), {"traceparent": not_sampled}
        answer = await caller.post(f"/Trips/{unsampled}/run", json=body, headers=headers, timeout=30)
    assert answer.json()["status"] == "confirmed"
    assert await observed.harness.book(sampled, ORDINARY) == "confirmed"
    await tree_of(observed, sampled)  # earlier spans have arrived, too
    spans = [span for span in observed.receiver.spans() if span.service != "Restate"]
    assert [span for span in spans if unsampled in span.attributes.values()] == []
    assert {span.service for span in spans if span.parent_id is None} <= {"console"}


async def test_console_traces_hide_secret_links(observed):
    url = observed.harness.platform.topology.console_url
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"{url}/l/a-secret-link")
        assert (await client.get(f"{url}/signin")).status_code == 200

    async def received() -> bool:
        return any(span.service == "console" and span.name == "GET /signin" for span in observed.receiver.spans())

    await eventually(received, what="a span of the console")
    values = [value for span in observed.receiver.spans() for value in (span.name, *span.attributes.values())]
    assert not any("a-secret-link" in value for value in values)
