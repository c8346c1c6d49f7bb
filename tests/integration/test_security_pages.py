"""Refusal of invocations that a web page starts over the ingress."""

from __future__ import annotations

import httpx
import restate
from pydantic import BaseModel

from perdure import DataPlaneService
from perdure.security import SecurityConfig, ValidationMode
from tests.support import Recording


class Order(BaseModel):
    id: str = "a"


PAGE = {"origin": "https://shop.example.com"}
EVIL = {"origin": "https://evil.example.com"}


def plain(did: Recording) -> restate.Service:
    """Return a service of the SDK."""
    service = restate.Service("Plain")

    @service.handler()
    async def act(ctx: restate.Context) -> str:
        did.add("plain")
        return "done"

    return service


def data(did: Recording) -> DataPlaneService:
    service = DataPlaneService("Data", public=True)

    @service.handler()
    async def act(ctx, order: Order) -> str:
        did.add("data")
        return "done"

    return service


async def post(url, path, headers, body=None):
    async with httpx.AsyncClient() as http:
        return await http.post(url + path, json=body, headers=headers)


async def test_handler_refuses_page_without_any_settings(restate, did):
    env = await restate.serve(plain(did), data(did))
    for path, body in (("/Plain/act", None), ("/Data/act", {"id": "a"})):
        answer = await post(env.ingress, path, EVIL, body)
        assert (answer.status_code, answer.json()["metadata"]["code"]) == (403, "browser_origin")
        assert answer.headers["x-restate-error-source"] == "invocation"
    assert did.all() == []


async def test_send_from_page_does_nothing(restate, did):
    env = await restate.serve(plain(did))
    sent = await post(env.ingress, "/Plain/act/send", EVIL)
    async with httpx.AsyncClient() as http:
        ended = await http.get(f"{env.ingress}/restate/invocation/{sent.json()['invocationId']}/attach")
    assert ended.status_code == 403
    assert did.all() == []


async def test_allowed_page_is_served(restate, did):
    env = await restate.serve(plain(did), security=SecurityConfig.development(allowed_origins=(PAGE["origin"],)))
    assert (await post(env.ingress, "/Plain/act", PAGE)).text == '"done"'
    assert (await post(env.ingress, "/Plain/act", EVIL)).status_code == 403


async def test_disabled_checks_take_page(restate, did):
    off = SecurityConfig.development(validation_mode=ValidationMode.DISABLED)
    env = await restate.serve(plain(did), security=off)
    assert (await post(env.ingress, "/Plain/act", EVIL)).status_code == 200
