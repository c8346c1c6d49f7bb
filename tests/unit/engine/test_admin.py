"""Requests and errors of the admin API client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import EngineError

URL = "http://admin.test:9070"


def asking(answer: httpx.Response | Exception) -> tuple[AdminClient, list[httpx.Request]]:
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
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
