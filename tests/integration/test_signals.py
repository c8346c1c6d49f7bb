"""External signals (awakeables) and internal signals (promises)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import restate as sdk
from pydantic import BaseModel

from perdure import (
    IngressClient,
    gather,
    get_internal_signal,
    handler,
    race_awakeable_with_timeout,
    reject_external_signal,
    resolve_external_signal,
    wait_for_external_signal,
)
from perdure._runtime import invocation_ids
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import IngressError
from perdure.signals import ExternalSignal
from tests.support import Recording, eventually


class Verdict(BaseModel):
    approved: bool
    by: list[str] = []


class Answer(BaseModel):
    id: str
    verdict: Verdict | None = None
    reason: str = ""
    code: int = 500


def external(did: Recording) -> tuple[list[sdk.Service], list[Any]]:
    waits = sdk.Service("Waits")

    @handler(waits)
    async def wait(ctx: sdk.Context, key: str) -> Verdict:
        signal = wait_for_external_signal(ctx, Verdict)
        did.add(f"waits {key}/{signal.id}")
        return await signal.result()

    @handler(waits)
    async def wait_for_many(ctx: sdk.Context, key: str) -> list[Verdict]:
        signal: ExternalSignal[list[Verdict]] = wait_for_external_signal(ctx, list[Verdict])
        did.add(f"waits {key}/{signal.id}")
        return await signal.result()

    @handler(waits)
    async def wait_for_nothing(ctx: sdk.Context, key: str) -> None:
        signal = wait_for_external_signal(ctx, type(None))
        did.add(f"waits {key}/{signal.id}")
        return await signal.result()

    @handler(waits)
    async def resolve(ctx: sdk.Context, answer: Answer) -> None:
        resolve_external_signal(ctx, answer.id, answer.verdict)

    @handler(waits)
    async def resolve_many(ctx: sdk.Context, answer: Answer) -> None:
        resolve_external_signal(ctx, answer.id, [answer.verdict, answer.verdict])

    @handler(waits)
    async def reject(ctx: sdk.Context, answer: Answer) -> None:
        reject_external_signal(ctx, answer.id, answer.reason, answer.code)

    return [waits], [wait, wait_for_many, wait_for_nothing, resolve, resolve_many, reject]


async def signal_id(did: Recording, key: str) -> str:
    async def seen() -> str | None:
        entries = did.of(key)
        return entries[0].removeprefix("waits ") if entries else None

    return await eventually(seen, what="awakeable")


YES, NO = Verdict(approved=True, by=["ada", "grace"]), Verdict(approved=False)


async def test_answer_signal_by_handler_or_ingress(restate, did):
    services, (wait, wait_for_many, wait_for_nothing, resolve, resolve_many, _) = external(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:

        async def answered(waiter: Any, answer: Any) -> Any:
            key = str(uuid4())
            await ingress.send(waiter, key, idempotency_key=key)
            await answer(await signal_id(did, key))
            return await ingress.call(waiter, key, idempotency_key=key)

        async def by_handler(id_: str) -> None:
            await ingress.call(resolve, Answer(id=id_, verdict=YES))

        async def over_ingress(id_: str) -> None:
            await ingress.resolve_awakeable(id_, YES)

        async def many_by_handler(id_: str) -> None:
            await ingress.call(resolve_many, Answer(id=id_, verdict=YES))

        async def many_over_ingress(id_: str) -> None:
            await ingress.resolve_awakeable(id_, [YES, YES], list[Verdict])

        async def nothing_by_handler(id_: str) -> None:
            await ingress.call(resolve, Answer(id=id_))

        async def nothing_over_ingress(id_: str) -> None:
            await ingress.resolve_awakeable(id_, None)

        assert await answered(wait, by_handler) == YES
        assert await answered(wait, over_ingress) == YES
        assert await answered(wait_for_many, many_by_handler) == [YES, YES]
        assert await answered(wait_for_many, many_over_ingress) == [YES, YES]
        assert await answered(wait_for_nothing, nothing_by_handler) is None
        assert await answered(wait_for_nothing, nothing_over_ingress) is None


async def test_rejected_signal_is_terminal_error(restate, did):
    services, (wait, _, _, _, _, reject) = external(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:

        async def rejected(answer: Any) -> IngressError:
            key = str(uuid4())
            await ingress.send(wait, key, idempotency_key=key)
            await answer(await signal_id(did, key))
            with pytest.raises(IngressError) as failed:
                await ingress.call(wait, key, idempotency_key=key)
            return failed.value

        async def by_handler(id_: str) -> None:
            await ingress.call(reject, Answer(id=id_, reason="not today", code=418))

        async def over_ingress(id_: str) -> None:
            await ingress.reject_awakeable(id_, "nicht heute, „nein“")

        error = await rejected(by_handler)
        assert (error.status_code, error.message, error.source) == (418, "not today", "invocation")
        error = await rejected(over_ingress)
        assert (error.status_code, error.message) == (500, "nicht heute, „nein“")


@pytest.mark.parametrize(("body", "field"), [(b'{"by": 5}', "approved"), (b"{", "body"), (b"", "body")])
async def test_answer_of_wrong_type_is_terminal(restate, did, body, field):
    services, (wait, *_) = external(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress, httpx.AsyncClient() as http:
        key = str(uuid4())
        await ingress.send(wait, key, idempotency_key=key)
        url = f"{env.ingress}/restate/awakeables/{await signal_id(did, key)}/resolve"
        (await http.post(url, content=body, headers={"content-type": "application/json"})).raise_for_status()
        with pytest.raises(IngressError, match="the answer to an external signal does not match Verdict") as failed:
            await ingress.call(wait, key, idempotency_key=key)
    error = failed.value
    assert (error.status_code, error.code, error.metadata["field"]) == (400, "invalid_input", field)
    assert error.source == "invocation"


PROOF = "signature of the provider"


def checked() -> tuple[sdk.Service, list[Any]]:
    waits = sdk.Service("ChecksAnswers")

    def is_genuine(verdict: Verdict) -> bool:
        return PROOF in verdict.by

    @handler(waits)
    async def wait(ctx: sdk.Context) -> Verdict:
        return await wait_for_external_signal(ctx, Verdict, check=is_genuine).result()

    @handler(waits)
    async def race(ctx: sdk.Context) -> Verdict:
        signal = wait_for_external_signal(ctx, Verdict, check=is_genuine)
        found, timed_out = await race_awakeable_with_timeout(ctx, signal, timedelta(minutes=1), NO)
        assert not timed_out
        return found

    @handler(waits)
    async def gather_one(ctx: sdk.Context) -> Verdict:
        (found,) = await gather(ctx, wait_for_external_signal(ctx, Verdict, check=is_genuine))
        return found

    @handler(waits)
    async def asynchronous(ctx: sdk.Context) -> Verdict:
        async def later(verdict: Verdict) -> bool:
            return is_genuine(verdict)

        check: Any = later
        return await wait_for_external_signal(ctx, Verdict, check=check).result()

    return waits, [wait, race, gather_one, asynchronous]


async def test_check_rejects_unauthenticated_answers(restate):
    service, (*waiters, _) = checked()
    env = await restate.serve(service)
    async with IngressClient(env.ingress) as ingress:
        for waiter in waiters:
            for verdict, is_genuine in ((YES, False), (Verdict(approved=True, by=[PROOF]), True)):
                key = str(uuid4())
                invocation = await ingress.send(waiter, idempotency_key=key)
                await ingress.resolve_awakeable(invocation_ids.signal_id(invocation), verdict)
                if is_genuine:
                    assert await ingress.call(waiter, idempotency_key=key) == verdict
                    continue
                with pytest.raises(IngressError, match="failed its check") as failed:
                    await ingress.call(waiter, idempotency_key=key)
                assert (failed.value.status_code, failed.value.code) == (403, "unproved_answer")


@pytest.mark.restate_modes("http2")
async def test_check_must_be_a_plain_function(restate):
    service, (*_, asynchronous) = checked()
    env = await restate.serve(service)
    async with IngressClient(env.ingress) as ingress:
        with pytest.raises(IngressError, match="check must be a plain function"):
            await ingress.call(asynchronous)


async def test_cancel_ends_wait_for_signal(restate, did):
    services, (wait, *_) = external(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.send(wait, key, idempotency_key=key)
        await signal_id(did, key)
        await admin.control_invocation(invocation_id, "cancel")
        with pytest.raises(IngressError) as failed:
            await ingress.call(wait, key, idempotency_key=key)
    assert (failed.value.status_code, failed.value.message, failed.value.code) == (409, "cancelled", "cancelled")


def internal(did: Recording) -> tuple[sdk.Workflow, list[Any]]:
    flow = sdk.Workflow("Decisions")

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext) -> Verdict:
        return await get_internal_signal(ctx, "verdict", Verdict).result()

    @handler(flow, "shared")
    async def wait(ctx: sdk.WorkflowSharedContext) -> Verdict:
        return await get_internal_signal(ctx, "verdict", Verdict).result()

    @handler(flow, "shared")
    async def peek(ctx: sdk.WorkflowSharedContext) -> Verdict | None:
        return await get_internal_signal(ctx, "verdict", Verdict).peek()

    @handler(flow, "shared")
    async def decide(ctx: sdk.WorkflowSharedContext, verdict: Verdict) -> None:
        await get_internal_signal(ctx, "verdict", Verdict).resolve(verdict)

    @handler(flow, "shared")
    async def refuse(ctx: sdk.WorkflowSharedContext, reason: str) -> None:
        await get_internal_signal(ctx, "verdict", Verdict).reject(reason, 410)

    return flow, [run, wait, peek, decide, refuse]


async def test_promise_is_shared_within_workflow(restate, did):
    flow, (run, wait, peek, decide, _) = internal(did)
    env = await restate.serve(flow)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        await ingress.send(run, key=key)
        assert await ingress.call(peek, key=key) is None
        await ingress.call(decide, YES, key=key)
        assert await ingress.attach(run, key=key) == YES
        assert await ingress.call(wait, key=key) == YES
        assert await ingress.call(peek, key=key) == YES
        assert await ingress.call(peek, key=str(uuid4())) is None


async def test_resolve_promise_once_before_wait(restate, did):
    flow, (run, _, _, decide, refuse) = internal(did)
    env = await restate.serve(flow)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        await ingress.call(decide, YES, key=key)
        for function, value in ((decide, Verdict(approved=False)), (refuse, "too late")):
            with pytest.raises(IngressError) as second:
                await ingress.call(function, value, key=key)
            assert second.value.status_code == 409
        assert await ingress.call(run, key=key) == YES


async def test_rejected_promise_is_terminal_error(restate, did):
    flow, (run, wait, peek, _, refuse) = internal(did)
    env = await restate.serve(flow)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        await ingress.send(run, key=key)
        await ingress.call(refuse, "not today", key=key)
        for waiting in (ingress.attach(run, key=key), ingress.call(wait, key=key), ingress.call(peek, key=key)):
            with pytest.raises(IngressError) as failed:
                await waiting
            assert (failed.value.status_code, failed.value.message) == (410, "not today")


async def test_reject_malformed_signal_id(restate, did):
    services, (wait, _, _, resolve, _, reject) = external(did)
    env = await restate.serve(*services)
    async with IngressClient(env.ingress) as ingress:
        key = str(uuid4())
        await ingress.send(wait, key, idempotency_key=key)
        real = await signal_id(did, key)
        # Untrusted input. The engine would retry the handler forever.
        for id_ in ("", "bogus", "ü" * 44, real[:-1], real + "A", real[:-1] + "_", real.replace("sign_1", "prom_1")):
            for act, answer in ((resolve, Answer(id=id_, verdict=YES)), (reject, Answer(id=id_, reason="no"))):
                with pytest.raises(IngressError, match="is not the ID of an external signal") as failed:
                    await ingress.call(act, answer)
                assert (failed.value.status_code, failed.value.metadata["field"]) == (400, "id")
        await ingress.call(resolve, Answer(id=real, verdict=YES))
        assert await ingress.call(wait, key, idempotency_key=key) == YES


async def test_promise_of_wrong_type(restate):
    deployed: dict[str, Any] = {"type": int}
    flow = sdk.Workflow("Misread")

    @handler(flow, "main")
    async def run(ctx: sdk.WorkflowContext) -> str:
        return repr(await get_internal_signal(ctx, "word", deployed["type"]).result())

    @handler(flow, "shared")
    async def peek(ctx: sdk.WorkflowSharedContext) -> str:
        return repr(await get_internal_signal(ctx, "word", deployed["type"]).peek())

    @handler(flow, "shared")
    async def say(ctx: sdk.WorkflowSharedContext, word: str) -> None:
        await get_internal_signal(ctx, "word", str).resolve(word)

    env = await restate.serve(flow)
    async with IngressClient(env.ingress) as ingress, AdminClient(env.admin) as admin:
        key = str(uuid4())
        invocation_id = await ingress.submit(run, key=key)
        await ingress.call(say, "five", key=key)
        with pytest.raises(
            IngressError, match="Misread/peek cannot read signal 'word' as int: invalid input: body"
        ) as no:
            await ingress.call(peek, key=key)
        assert (no.value.status_code, no.value.metadata) == (
            500,
            {"code": "unreadable_signal", "handler": "Misread/peek", "signal": "word"},
        )

        async def failure() -> str | None:
            rows = await admin.query(f"select last_failure from sys_invocation where id = {sql_text(invocation_id)}")
            return rows[0].get("last_failure") if rows else None

        assert "Misread/run cannot read signal 'word' as int" in await eventually(failure, what="failed attempt")
        deployed["type"] = str
        assert await ingress.attach(run, key=key) == "'five'"
