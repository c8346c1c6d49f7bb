"""Texts and statuses of the real engine by which clients judge. A failure means that an upgrade changed one."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
import restate as sdk

from perdure import IngressClient, Target
from perdure._runtime import engine_messages as messages
from perdure.engine.admin import AdminClient
from perdure.errors import (
    Acceptance,
    AlreadyStarted,
    EngineError,
    IngressError,
    InvocationNotFound,
    NotFound,
    NotReady,
    NotRegistered,
)
from perdure.retry import RetryPolicy
from perdure.testing.plugin import restate_fixture
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("http2")

shop, flow = sdk.Service("Shop"), sdk.Workflow("Flow")
UNKNOWN_ID = "inv_1aiqX0vFEFNH1Umgre58JiCLgHfTtztYK5"
echo, absent = Target("Shop", "echo", str, str), Target("Shop", "absent", str, str)
missing, bare = Target("Shop", "missing", str, str), Target("Shop", "bare", str, str)
run, release = Target("Flow", "run", str, str), Target("Flow", "release", str, None)
dispatch = Target("Shop", "dispatch", str, None)
two_attempts = RetryPolicy(max_attempts=2).for_invocations("kill")


@shop.handler("echo")
async def _echo(ctx: sdk.Context, text: str) -> str:
    return text


@shop.handler("missing")
async def _missing(ctx: sdk.Context, text: str) -> str:
    raise NotFound("not found")


@shop.handler("bare")
async def _bare(ctx: sdk.Context, text: str) -> str:
    raise sdk.TerminalError(text, 404)


@shop.handler("dispatch", invocation_retry_policy=two_attempts)
async def _dispatch(ctx: sdk.Context, service: str) -> None:
    await ctx.generic_send(service, "absent", b"").invocation_id()


@flow.main("run")
async def _run(ctx: sdk.WorkflowContext, text: str) -> str:
    return await ctx.promise("word", type_hint=str).value()


@flow.handler("release")
async def _release(ctx: sdk.WorkflowSharedContext, word: str) -> None:
    await ctx.promise("word", type_hint=str).resolve(word)


served = restate_fixture(shop, flow)


@pytest.fixture
async def ingress(served):
    async with IngressClient(served.ingress) as client:
        yield client


@pytest.fixture
async def hasty(served):
    """Open a client that does not wait for a registration."""
    async with IngressClient(served.ingress, registration_timeout=timedelta(0)) as client:
        yield client


async def refused(call, kind=IngressError):
    with pytest.raises(kind) as failed:
        await call
    assert type(failed.value) is kind
    return failed.value


@pytest.mark.parametrize("target", [absent, Target("Nowhere", "run", str, str)], ids=str)
async def test_unregistered_handler_is_recognised(hasty, target):
    for call in (hasty.call(target, "x"), hasty.send(target, "x")):
        error = await refused(call, NotRegistered)
        assert messages.says_not_registered(error.message)
        assert error.acceptance is Acceptance.NOT_ACCEPTED


@pytest.mark.parametrize("read", ["attach", "output"])
async def test_read_for_unregistered_service_finds_no_invocation(hasty, read):
    call = getattr(hasty, read)(Target("Nowhere", "run", str, str), idempotency_key="k")
    assert (await refused(call, InvocationNotFound)).acceptance is Acceptance.UNKNOWN


@pytest.mark.parametrize("name", ["invocation_id", "idempotency_key", "key"])
async def test_unknown_invocation_is_recognised(ingress, name):
    target, value = (run if name == "key" else echo), (UNKNOWN_ID if name == "invocation_id" else str(uuid4()))
    for call in (ingress.attach(target, **{name: value}), ingress.output(target, **{name: value})):
        error = await refused(call, InvocationNotFound)
        assert messages.says_no_invocation(error.message)
        assert (error.status_code, error.source, error.acceptance) == (404, "ingress", Acceptance.UNKNOWN)


@pytest.mark.parametrize("text", ["not found", "invocation not found", "service 'Shop' not found, make sure to ..."])
async def test_404_of_handler_is_not_an_unknown_invocation(ingress, text):
    for target in (bare, missing):
        id_ = await ingress.send(target, text, idempotency_key=str(uuid4()))
        await eventually(lambda id_=id_, target=target: has_ended(ingress, target, id_), what="end")
        for call in (
            ingress.call(target, text),
            ingress.attach(target, invocation_id=id_),
            ingress.output(target, invocation_id=id_),
        ):
            error = await refused(call)
            assert (error.status_code, error.source, error.acceptance) == (404, "invocation", Acceptance.ACCEPTED)
            assert error.code == ("not_found" if target is missing else None)


async def has_ended(ingress, target, id_):
    try:
        await ingress.output(target, invocation_id=id_)
    except NotReady:
        return False
    except IngressError:
        pass
    return True


async def test_404_of_handler_without_idempotency_key(ingress):
    id_ = await ingress.send(bare, "not found")
    error = await refused(ingress.attach(bare, invocation_id=id_))
    assert (error.status_code, error.source) == (404, "invocation")


async def test_second_start_of_workflow_is_recognised(ingress):
    key = str(uuid4())
    await ingress.submit(run, "x", key=key)
    error = await refused(ingress.call(run, "x", key=key), AlreadyStarted)
    assert error.message.startswith(messages.WORKFLOW_STARTED)
    assert (error.status_code, error.source, error.acceptance) == (409, "ingress", Acceptance.ACCEPTED)
    assert (await refused(ingress.output(run, key=key), NotReady)).acceptance is Acceptance.ACCEPTED
    await ingress.call(release, "x", key=key)


async def test_send_to_unknown_handler_is_recognised(ingress):
    for service in ("Nowhere", "Shop"):
        error = await refused(ingress.call(dispatch, service))
        assert messages.says_unknown_handler(error.message), error.message
        assert error.metadata == {}


async def test_control_of_unknown_or_ended_invocation(served, ingress):
    async with AdminClient(served.admin) as admin:
        for action in ("cancel", "kill", "pause", "resume", "purge", "restart-as-new"):
            await refused(admin.control_invocation(UNKNOWN_ID, action), InvocationNotFound)
            malformed = await refused(admin.control_invocation("inv_xx", action), EngineError)
            assert messages.says_malformed_invocation_id(str(malformed))
        ended = await ingress.send(echo, "x", idempotency_key=str(uuid4()))
        await ingress.attach(echo, invocation_id=ended)
        for action in ("cancel", "kill", "pause", "resume"):
            error = await refused(admin.control_invocation(ended, action), EngineError)
            assert (error.status_code, error.acceptance) == (409, Acceptance.NOT_ACCEPTED)
            assert not await admin.control_if_permitted(ended, action)
        with pytest.raises(EngineError) as malformed:
            await admin.query("select target from sys_invocation_status where id = 'inv_xx'")
        assert messages.says_malformed_invocation_id(str(malformed.value))
