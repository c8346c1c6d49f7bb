"""Requests and errors of the admin API client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.admin import AdminClient, sql_text
from perdure.engine.proxy_responses import PROXY_HEADER
from perdure.errors import Acceptance, EngineError, IngressError, InvocationNotFound

URL = "http://admin.test:9070"


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Record the waits between attempts without waiting."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("perdure.engine.admin.asyncio.sleep", pause)
    return waited


def asking(*answers: httpx.Response | Exception) -> tuple[AdminClient, list[httpx.Request]]:
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        answer = answers[min(len(requests), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    http = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    return AdminClient(f"{URL}/", http=http), requests


async def test_register_forces_rediscovery():
    admin, requests = asking(httpx.Response(201, json={"id": "dp_1", "services": [{"name": "A"}, {"name": "B"}]}))
    assert await admin.register("http://127.0.0.1:9081", use_http_11=True) == ["A", "B"]
    (request,) = requests
    assert (request.method, str(request.url)) == ("POST", f"{URL}/deployments")
    assert json.loads(request.content) == {"uri": "http://127.0.0.1:9081", "use_http_11": True, "force": True}


async def test_query_requests_json():
    admin, requests = asking(httpx.Response(200, json={"rows": [{"id": "inv_1"}]}))
    assert await admin.query("select 1") == [{"id": "inv_1"}]
    assert json.loads(requests[0].content) == {"query": "select 1"}
    assert requests[0].headers["accept"] == "application/json"


@pytest.mark.parametrize("act", ["cancel", "kill", "pause", "resume", "purge"])
async def test_invocation_id_is_quoted_in_path(act: Any):
    admin, requests = asking(httpx.Response(202))
    await admin.control_invocation("inv_1", act)
    await admin.control_invocation("../services/x?y", act)
    assert requests[0].method == "PATCH"
    assert requests[0].url.raw_path.decode() == f"/invocations/inv_1/{act}"
    assert requests[1].url.raw_path.decode() == f"/invocations/..%2Fservices%2Fx%3Fy/{act}"


async def test_deployment_is_read_by_id():
    admin, requests = asking(httpx.Response(200, json={"id": "dp_1", "services": [{"name": "A", "handlers": []}]}))
    assert (await admin.deployment("dp_1"))["services"] == [{"name": "A", "handlers": []}]
    await admin.deployment("../x")
    assert [each.url.raw_path for each in requests] == [b"/deployments/dp_1", b"/deployments/..%2Fx"]


async def test_deployment_is_removed_by_force():
    admin, requests = asking(httpx.Response(202))
    await admin.remove_deployment("dp_1")
    assert (requests[0].method, requests[0].url.raw_path) == ("DELETE", b"/deployments/dp_1?force=true")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (httpx.Response(400, json={"message": "no such column"}), "POST /query: 400 no such column"),
        (httpx.Response(500, text="boom"), "POST /query: 500 boom"),
        (httpx.Response(500, json=["boom"]), r'POST /query: 500 \["boom"\]'),
        (httpx.Response(404, text=f"\n<html>{'x' * 200}\n<body>no</body>"), f"POST /query: 404 <html>{'x' * 94}"),
        (
            httpx.Response(500, json={"message": "Datafusion error: node lookup for partition 3 failed"}),
            "POST /query: 500 .* node lookup for partition 3 failed; the engine is starting: try again in a moment",
        ),
    ],
)
async def test_error_contains_request_and_reason(answer, text):
    admin, _ = asking(answer)
    with pytest.raises(EngineError, match=f"^the engine's admin API at {URL} refused {text}$"):
        await admin.query("select x")


async def test_error_names_unreachable_engine():
    admin, _ = asking(httpx.ConnectError("refused"))
    message = rf"^the engine's admin API at {URL} does not answer \(ConnectError\): start the engine, or set PERDURE"
    with pytest.raises(EngineError, match=message):
        await admin.services()
    assert not await admin.healthy()


@pytest.mark.parametrize("url", ["localhost:9070", "http://127.0.0.1:port"])
async def test_error_names_invalid_address(url):
    async with AdminClient(url) as admin:
        with pytest.raises(
            EngineError, match=r"' is not a URL: set PERDURE_ADMIN_URL, for example to http://127.0.0.1:9070$"
        ):
            await admin.services()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
async def test_engine_is_healthy_if_it_returns_200(status, healthy):
    admin, requests = asking(httpx.Response(status))
    assert await admin.healthy() is healthy
    assert str(requests[0].url) == f"{URL}/health"


@given(st.text())
def test_sql_text_quotes_values(value):
    quoted = sql_text(value)
    assert quoted[0] == quoted[-1] == "'"
    assert quoted[1:-1].replace("''", "") == quoted[1:-1].replace("''", "").replace("'", "")
    assert quoted[1:-1].replace("''", "'") == value


ROUTING = "Error when routing the request internally. Reason: "
NOT_ROUTED = [
    f"{ROUTING}cannot find node for partition 1",
    f"{ROUTING}rpc for partition 1 at node N1:4 failed: not leader",
    f"{ROUTING}rpc for partition 1 at node N1:2 failed: node N1:2 was shut down or removed",
]
NO_LEADER = [
    "Datafusion error: External error: node lookup for partition 1 failed",
    "Datafusion error: External error: node N1:3 was shut down or removed",
    "Datafusion error: External error: partition 0 doesn't exist on this node, this is benign if the partition is ...",
]


def error_response(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"message": message})


@pytest.mark.parametrize("message", NO_LEADER)
async def test_repeat_query_until_partitions_have_leaders(message, pauses):
    admin, requests = asking(*[error_response(500, message)] * 3, httpx.Response(200, json={"rows": []}))
    assert await admin.query("select 1") == []
    assert (len(requests), pauses) == (4, [0.05, 0.1, 0.2])


@pytest.mark.parametrize("message", NOT_ROUTED)
async def test_repeat_action_without_effect(message, pauses):
    admin, requests = asking(error_response(503, message), httpx.Response(202))
    await admin.control_invocation("inv_1", "restart-as-new")
    assert (len(requests), pauses) == (2, [0.05])


async def test_repetition_ends_after_start_timeout(pauses):
    admin, _ = asking(error_response(503, NOT_ROUTED[0]))
    with pytest.raises(EngineError, match="the engine is starting: try again") as failed:
        await admin.control_invocation("inv_1", "cancel")
    assert failed.value.acceptance is Acceptance.NOT_ACCEPTED
    assert 29.5 < sum(pauses) <= 30


@given(
    reason=st.text()
    | st.sampled_from(["internal error: x", "lost leadership", "internal error: not leader", "x failed: not leader"])
)
async def test_unknown_routing_error_has_unknown_outcome(reason):
    # A second cancel would end the compensations that the first one has started.
    message = f"{ROUTING}rpc for partition 1 at node N1:4 failed: {reason}"
    admin, requests = asking(error_response(503, message))
    with pytest.raises(EngineError) as failed:
        await admin.control_invocation("inv_1", "cancel")
    assert (failed.value.acceptance, len(requests)) == (Acceptance.UNKNOWN, 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (httpx.ConnectError("refused"), Acceptance.NOT_ACCEPTED),
        (httpx.ReadError("broken"), Acceptance.UNKNOWN),
        (httpx.ReadTimeout("slow"), Acceptance.UNKNOWN),
        (httpx.Response(503, headers={PROXY_HEADER: "not-sent"}), Acceptance.NOT_ACCEPTED),
        (httpx.Response(502, headers={PROXY_HEADER: "unknown-outcome"}), Acceptance.UNKNOWN),
        (error_response(409, "The invocation 'inv_1' was already completed."), Acceptance.NOT_ACCEPTED),
        (httpx.Response(404, text="<html>another server</html>"), Acceptance.UNKNOWN),
        (error_response(500, "boom"), Acceptance.UNKNOWN),
    ],
)
async def test_error_tells_whether_action_was_accepted(answer, expected):
    admin, _ = asking(answer)
    with pytest.raises(EngineError) as failed:
        await admin.control_invocation("inv_1", "cancel")
    assert (type(failed.value), failed.value.acceptance) == (EngineError, expected)


async def test_action_on_unknown_invocation():
    admin, _ = asking(error_response(404, "The requested invocation 'inv_1' does not exist"))
    with pytest.raises(InvocationNotFound, match="does not exist") as failed:
        await admin.control_invocation("inv_1", "cancel")
    assert (failed.value.status_code, isinstance(failed.value, IngressError)) == (404, True)
