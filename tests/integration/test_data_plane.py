"""Data-plane services: runs, retries, visibility and operations."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx
import pytest
import restate as sdk
from pydantic import BaseModel, ConfigDict, Field

from perdure import DataPlaneContext, DataPlaneService, IngressClient, RunConfig, ServiceClient, handler
from perdure.errors import ConfigurationError, IngressError, Refused
from tests.support import Recording


class Seats(BaseModel):
    model_config = ConfigDict(extra="forbid")

    flight: str
    seats: int = Field(ge=1, strict=True)


class Reserved(BaseModel):
    id: str
    header: str | None = None


ONE_MS = timedelta(milliseconds=1)


def flights(did: Recording, **options: object) -> tuple[DataPlaneService, dict[str, object]]:
    service = DataPlaneService("Seats", run=RunConfig(max_retries=1, initial_delay=ONE_MS), **options)

    @service.handler()
    async def reserve(ctx: DataPlaneContext, request: Seats) -> Reserved:
        did.add("handler")

        def work(seats: Seats) -> Reserved:
            did.add(f"run {seats.flight}")
            if seats.flight == "full":
                raise Refused("no seats left", 409, "seats_sold_out")
            if seats.flight == "flaky":
                raise OSError("gone")
            return Reserved(id=f"{ctx.invocation_id[:4]}{seats.flight}", header=ctx.headers.get("x-tenant"))

        return await ctx.run("reserve", work, request)

    @service.handler()
    async def persistent(ctx: DataPlaneContext, request: Seats) -> Reserved:
        def work() -> Reserved:
            did.add("persistent")
            raise OSError("gone")

        return await ctx.run("persist", work, config=RunConfig(max_retries=3, initial_delay=ONE_MS))

    @service.handler(public=True)
    async def ping(ctx: DataPlaneContext) -> str:
        return "pong"

    return service, {"reserve": reserve, "persistent": persistent, "ping": ping}


async def test_handlers_are_private_unless_declared_public(restate, did):
    service, to = flights(did)
    caller = sdk.Service("Caller")

    @handler(caller)
    async def go(ctx: sdk.Context) -> Reserved:
        return await ServiceClient(ctx, to["reserve"]).call(Seats(flight="PD100", seats=1))

    env = await restate.serve(*service.definitions(), caller)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(to["ping"]) == "pong"
        with pytest.raises(IngressError, match="not public") as private:
            await ingress.call(to["reserve"], Seats(flight="PD100", seats=1))
        assert (private.value.status_code, private.value.source) == (400, "ingress")
        assert (await ingress.call(go)).id == "inv_PD100"


async def test_run_settings_override_service_settings(restate, did):
    service, to = flights(did, public=True)
    env = await restate.serve(*service.definitions())
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError) as exhausted:
            await ingress.call(to["reserve"], Seats(flight="flaky", seats=1))
        assert exhausted.value.message == "run exhausted retries (2 attempts) for reserve: OSError('gone')"
        assert did.count("run flaky") == 2
        with pytest.raises(IngressError, match=r"\(4 attempts\) for persist"):
            await ingress.call(to["persistent"], Seats(flight="x", seats=1))
        assert did.count("persistent") == 4
        with pytest.raises(IngressError) as refused:
            await ingress.call(to["reserve"], Seats(flight="full", seats=1))
        assert (refused.value.status_code, refused.value.code) == (409, "seats_sold_out")
        assert did.count("run full") == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"flight": "PD100", "seats": -1}, "seats"),
        ({"flight": "PD100", "seats": 1.5}, "seats"),
        ({"flight": "PD100", "seats": 1, "nope": True}, "nope"),
        ({"seats": 1}, "flight"),
    ],
    ids=str,
)
@pytest.mark.restate_modes("http2")
async def test_invalid_input_never_reaches_handler(restate, did, body, field):
    service, _ = flights(did, public=True)
    env = await restate.serve(*service.definitions())
    async with httpx.AsyncClient() as http:
        response = await http.post(f"{env.ingress}/Seats/reserve", json=body)
    assert response.status_code == 400
    assert response.json()["metadata"]["field"] == field
    assert field in response.json()["message"]
    assert did.all() == []


async def test_execute_operation_inside_another_handler(restate, did):
    def charge(seats: Seats) -> Reserved:
        did.add(f"charge {seats.flight}")
        if seats.flight == "flaky":
            raise OSError("gone")
        return Reserved(id=seats.flight)

    payments: DataPlaneService[Seats, Reserved] = DataPlaneService(
        "Payments", charge, run=RunConfig(max_retries=0, initial_delay=ONE_MS)
    )
    caller = sdk.Service("Caller")

    @handler(caller)
    async def go(ctx: sdk.Context, flight: str) -> Reserved:
        result = await payments.execute(ctx, Seats(flight=flight, seats=1))
        await ctx.sleep(ONE_MS)
        return result

    env = await restate.serve(caller)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(go, "PD100") == Reserved(id="PD100")
        assert did.count("charge PD100") == 1
        with pytest.raises(IngressError, match=r"run exhausted retries \(1 attempts\) for Payments"):
            await ingress.call(go, "flaky")


async def test_reject_execute_without_operation():
    with pytest.raises(ConfigurationError, match=r"Flights has no operation to execute: DataPlaneService\(name, oper"):
        await DataPlaneService("Flights").execute(None, None)  # type: ignore[arg-type] # refused before it is used


async def test_blocking_runs_may_wait_for_each_other(restate):
    """A fixed pool, all of whose threads wait for work that needs a thread, would never continue."""
    shop = DataPlaneService("Shop", public=True)
    everywhere: list[str] = []

    @shop.handler()
    async def price(ctx: DataPlaneContext) -> str:
        return await ctx.run("look up", lambda: "5", returns=str)

    @shop.handler()
    async def quote(ctx: DataPlaneContext) -> str:
        def ask() -> str:
            return httpx.post(f"{everywhere[0]}/Shop/price", timeout=60).text

        return await ctx.run("ask", ask)

    env = await restate.serve(shop)
    everywhere.append(env.ingress)
    async with IngressClient(env.ingress, timeout=timedelta(seconds=60)) as ingress:
        assert await asyncio.gather(*(ingress.call(quote) for _ in range(60))) == ['"5"'] * 60
