"""Retries of the ingress client."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from perdure import IngressClient
from perdure.errors import Acceptance, IngressError, InvocationNotFound, NotRegistered, TooLarge
from tests.unit.engine.scripted_ingress import OK, SENT, URL, Ingress, Order, Receipt, answer, book


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Record the backoff between attempts without waiting."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("perdure.engine.ingress_requests.asyncio.sleep", pause)
    return waited


BROKEN = [httpx.ReadError("broken"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut"), httpx.WriteError("x")]


REFUSED = [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
async def test_do_not_retry_unknown_outcome(error):
    ingress = Ingress(error)
    async with ingress.client() as client:
        for attempt in (client.call(book, Order(id="1"), key="t"), client.send(book, Order(id="1"), key="t")):
            with pytest.raises(IngressError, match=r"the connection broke before|not answer in time") as failed:
                await attempt
            assert (failed.value.status_code, failed.value.source) == (0, None)
            assert failed.value.acceptance is Acceptance.UNKNOWN
    assert len(ingress.requests) == 2


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
async def test_retry_submitted_workflow(error):
    ingress = Ingress(error, error, SENT)
    async with ingress.client() as client:
        assert await client.submit(book, Order(id="1"), key="t") == "inv_1"
    assert [request.url.raw_path for request in ingress.requests] == [b"/restate/send/Trips/t/run"] * 3
    assert [request.content for request in ingress.requests] == [ingress.requests[0].content] * 3


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
async def test_retry_with_idempotency_key(error):
    ingress = Ingress(error, error, OK)
    async with ingress.client() as client:
        assert await client.call(book, Order(id="1"), idempotency_key="k") == Receipt(text="booked")
    assert [request.headers["idempotency-key"] for request in ingress.requests] == ["k"] * 3
    assert [request.content for request in ingress.requests] == [ingress.requests[0].content] * 3


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
async def test_retry_unsent_request(error, pauses):
    ingress = Ingress(error, error, OK)
    async with ingress.client() as client:
        assert await client.call(book, Order(id="1")) == Receipt(text="booked")
    assert len(ingress.requests) == 3
    assert pauses == [0.1, 0.2]


async def test_retries_are_limited_and_raise_last_error(pauses):
    ingress = Ingress(httpx.ConnectError("refused"))
    async with ingress.client(max_attempts=5) as client:
        told = f"^no connection to the ingress at {URL}: start the engine, or set PERDURE_INGRESS_URL$"
        with pytest.raises(IngressError, match=told) as failed:
            await client.call(book, Order(id="1"))
    assert failed.value.acceptance is Acceptance.NOT_ACCEPTED
    assert len(ingress.requests) == 5
    assert pauses == [0.1, 0.2, 0.4, 0.8]


async def test_backoff_is_limited_to_five_seconds(pauses):
    async with Ingress(httpx.ConnectError("refused")).client(max_attempts=13) as client:
        with pytest.raises(IngressError):
            await client.call(book, Order(id="1"))
    assert len(pauses) == 12
    assert max(pauses) == 5.0


async def test_zero_retries_send_once():
    ingress = Ingress(httpx.ConnectError("refused"))
    async with ingress.client(max_attempts=1) as client:
        with pytest.raises(IngressError):
            await client.call(book, Order(id="1"))
    assert len(ingress.requests) == 1


@pytest.mark.parametrize("status", [409, 429, 500, 502, 503, 504])
async def test_do_not_retry_handler_error(status):
    ingress = Ingress(answer(status, "invocation"))
    async with ingress.client() as client:
        with pytest.raises(IngressError) as failed:
            await client.call(book, Order(id="1"), idempotency_key="k")
    assert (failed.value.status_code, failed.value.source) == (status, "invocation")
    assert len(ingress.requests) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("source", ["ingress", None])
async def test_retry_ingress_error_only_when_safe(status, source):
    ingress = Ingress(answer(status, source), OK)
    async with ingress.client() as client:
        assert await client.call(book, Order(id="1"), idempotency_key="k") == Receipt(text="booked")
        assert len(ingress.requests) == 2
    ingress = Ingress(answer(status, source), OK)
    async with ingress.client() as client:
        if (status, source) == (429, "ingress"):  # the ingress sheds load before it accepts a request
            await client.call(book, Order(id="1"))
            return
        with pytest.raises(IngressError) as failed:
            await client.call(book, Order(id="1"))
        assert len(ingress.requests) == 1
    assert failed.value.acceptance is Acceptance.UNKNOWN


@pytest.mark.parametrize(("asked", "expected"), [("0", 0.1), ("2", 2.0), ("3600", 60.0), ("soon", 0.1)])
async def test_retry_waits_as_asked(asked, expected, pauses):
    busy = httpx.Response(429, headers={"retry-after": asked})
    async with Ingress(busy, OK).client() as client:
        assert await client.call(book, Order(id="1"), idempotency_key="k") == Receipt(text="booked")
    assert pauses == [expected]


async def test_wait_is_limited_by_setting(pauses):
    busy = httpx.Response(503, headers={"retry-after": "10"})
    async with Ingress(busy, OK).client(max_retry_after=timedelta(seconds=4)) as client:
        await client.call(book, Order(id="1"), idempotency_key="k")
    assert pauses == [4.0]


async def test_do_not_send_oversized_request():
    ingress = Ingress(OK)
    async with ingress.client() as client:
        with pytest.raises(TooLarge, match=r"the body of POST /restate/call/Trips/run has [0-9,]+ bytes"):
            await client.call(book, Order(id="x" * 33 * 1024 * 1024))
    assert ingress.requests == []


@pytest.mark.parametrize("status", [400, 405, 470, 500])
async def test_do_not_retry_permanent_error(status):
    ingress = Ingress(answer(status, "ingress"))
    async with ingress.client() as client:
        with pytest.raises(IngressError):
            await client.call(book, Order(id="1"), idempotency_key="k")
    assert len(ingress.requests) == 1


@pytest.mark.parametrize("error", [*BROKEN[:1], *REFUSED[:1]], ids=lambda error: type(error).__name__)
async def test_retry_reads(error):
    ingress = Ingress(error, OK)
    async with ingress.client() as client:
        assert await client.attach(book, key="t") == Receipt(text="booked")
        assert await client.output(book, key="t") == Receipt(text="booked")
    assert [request.method for request in ingress.requests] == ["POST"] * 3


async def test_do_not_retry_invalid_address():
    async with IngressClient("localhost:8080") as client:
        with pytest.raises(IngressError, match="ingress URL 'localhost:8080' is invalid: it begins with http://"):
            await client.call(book, Order(id="1"), key="t")


def of_proxy(status, kind):
    return httpx.Response(
        status,
        json={"code": status, "message": "the engine takes no connection", "metadata": {"code": "engine_unreachable"}},
        headers={"x-perdure-proxy": kind},
    )


async def test_retry_request_that_proxy_did_not_send():
    ingress = Ingress(of_proxy(503, "not-sent"), of_proxy(503, "not-sent"), OK)
    async with ingress.client() as client:
        assert await client.call(book, Order(id="1"), key="t") == Receipt(text="booked")
    assert len(ingress.requests) == 3


@pytest.mark.parametrize(("status", "kind"), [(502, "unknown-outcome"), (403, "refused"), (503, "something")])
async def test_do_not_retry_other_proxy_responses(status, kind):
    ingress = Ingress(of_proxy(status, kind))
    async with ingress.client() as client:
        with pytest.raises(IngressError) as failed:
            await client.call(book, Order(id="1"), key="t")
    assert failed.value.status_code == (0 if kind == "unknown-outcome" else status)
    assert failed.value.source is None
    expected = {"unknown-outcome": Acceptance.UNKNOWN, "refused": Acceptance.NOT_ACCEPTED}
    assert failed.value.acceptance is expected.get(kind, Acceptance.UNKNOWN)


def missing(message="service 'Trips' not found, make sure to register the service before calling it."):
    return answer(404, "ingress", message=message)


async def test_repeat_request_until_handler_is_registered(pauses):
    ingress = Ingress(missing(), missing(), missing(), OK)
    async with ingress.client(max_attempts=1) as client:
        assert await client.call(book, Order(id="1")) == Receipt(text="booked")
    assert pauses == [0.05, 0.1, 0.2]


@pytest.mark.parametrize("seconds", [0, 1, 5, 30])
async def test_repetition_ends_after_registration_timeout(seconds, pauses):
    ingress = Ingress(missing())
    async with ingress.client(registration_timeout=timedelta(seconds=seconds)) as client:
        with pytest.raises(NotRegistered, match=r"^service 'Trips' not found.* register its URL") as failed:
            await client.send(book, Order(id="1"), key="t")
    assert failed.value.acceptance is Acceptance.NOT_ACCEPTED
    assert (failed.value.status_code, failed.value.source) == (404, "ingress")
    assert seconds - 0.5 < sum(pauses) <= seconds
    assert (f"within {seconds} s" in str(failed.value)) is (seconds > 0)


@pytest.mark.parametrize("last", [missing(), httpx.ConnectError("refused"), answer(400, "ingress")], ids=str)
async def test_unknown_outcome_of_earlier_attempt_remains(last):
    async with Ingress(BROKEN[0], last).client(registration_timeout=timedelta(seconds=1)) as client:
        with pytest.raises(IngressError, match="; an earlier attempt may have been accepted") as failed:
            await client.submit(book, Order(id="1"), key="t")
    assert failed.value.acceptance is Acceptance.UNKNOWN


NO_INVOCATION = answer(404, "invocation", message="not found")


async def test_attach_recognises_unknown_invocation():
    # The ingress answers an attach as if a handler had failed with 404.
    ingress = Ingress(NO_INVOCATION, answer(404, "ingress", message="invocation not found"))
    async with ingress.client() as client:
        with pytest.raises(InvocationNotFound):
            await client.attach(book, key="t")
    assert [request.url.path.rpartition("/")[2] for request in ingress.requests] == ["attach", "output"]


async def test_attach_recognises_404_of_handler():
    async with Ingress(NO_INVOCATION).client() as client:
        with pytest.raises(IngressError) as failed:
            await client.attach(book, key="t")
    assert (type(failed.value), failed.value.source) == (IngressError, "invocation")
    ingress = Ingress(answer(404, "invocation", metadata={"code": "not_found"}))
    async with ingress.client() as client:
        with pytest.raises(IngressError):
            await client.attach(book, key="t")
    assert len(ingress.requests) == 1


async def test_attach_waits_for_invocation_accepted_meanwhile():
    async with Ingress(NO_INVOCATION, answer(470, "ingress"), OK).client() as client:
        assert await client.attach(book, key="t") == Receipt(text="booked")
