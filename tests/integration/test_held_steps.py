"""Held steps: operator actions, deadlines and cancels, on a real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import pytest
from pydantic import Field

from perdure import Hold, IngressClient, Orchestration, SagaConfig, StatusData, Step, Target
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError, Refused
from perdure.retry import RetryPolicy
from perdure.saga.config import OnFailure
from perdure.saga.held_step_messages import (
    HeldStep,
    HeldStepAction,
    HeldStepActionRequest,
    HeldStepBulkRequest,
    HeldStepFilter,
    HeldStepListRequest,
    HeldStepReceipt,
    act_on_held_steps,
    held_step_action,
    list_held_steps,
    show_held_step,
)
from perdure.saga.held_step_signatures import sign_held_step_action
from tests.command_line import run_perdure
from tests.integration.actor_keys import OLGA, VERA
from tests.integration.saga_bench import QUICK, Bench, Task, do_task, run_step, step, truth, undo_task
from tests.support import eventually

HOUR = timedelta(hours=1)


class Holds:
    """An orchestration whose steps are held, and the operator's view of them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.mains: dict[str, Callable[[Orchestration], Awaitable[Any]]] = {}

    async def main(self, cp: Orchestration) -> Any:
        return await self.mains[cp.key](cp)

    @property
    def ingress(self) -> IngressClient:
        return self.bench.ingress

    @property
    def run(self) -> Target[None, Any, str]:
        return Target(self.bench.name, "run", None, object)  # type: ignore[return-value]

    async def start(self, main: Callable[[Orchestration], Awaitable[Any]]) -> str:
        key = str(uuid4())
        self.mains[key] = main
        await self.ingress.send(self.run, key=key)
        return key

    async def result(self, key: str) -> Any:
        try:
            return await self.ingress.attach(self.run, key=key)
        except IngressError as error:
            return error

    async def listed(self, key: str) -> list[HeldStep]:
        wanted = HeldStepListRequest(saga_id=f"{self.bench.name}:{key}")
        return (await self.ingress.call(list_held_steps, wanted)).items

    async def held(self, key: str, step: str, times: int = 1) -> HeldStep:
        """Wait until a step is held, and return it."""

        async def found() -> HeldStep | None:
            steps = await self.listed(key)
            return next((each for each in steps if each.step == step and each.held == times), None)

        return await eventually(found, what=f"held step '{step}'")

    async def gone(self, key: str) -> bool:
        async def none() -> bool:
            return not await self.listed(key)

        return await eventually(none, what="end of the hold")

    async def status(self, key: str) -> StatusData:
        return await self.ingress.call(Target(self.bench.name, "status", None, StatusData), key=key)

    async def until_phase(self, key: str, phase: str) -> None:
        async def reached() -> bool:
            return (await self.status(key)).phase == phase

        await eventually(reached, what=f"phase {phase}")

    async def control(self, invocation: str, action: str) -> None:
        async with AdminClient(self.bench.admin_url) as admin:
            await admin.control_invocation(invocation, action)  # type: ignore[arg-type]

    async def act(self, held: HeldStep, action: HeldStepAction, **fields: Any) -> HeldStepReceipt:
        request = HeldStepActionRequest(**{"id": held.id, "actor": "olga", "reason": "seen", **fields})
        return await self.ingress.call(held_step_action(action), request)


@pytest.fixture
async def holds(bench: Bench) -> Holds:
    found = Holds(bench)
    await bench.serve(found.main)
    return found


def held(cp: Orchestration, name: str, on_failure: OnFailure | None = None, **fields: Any) -> Step[Any, Any]:
    return step(cp, name, on_failure=on_failure or Hold(HOUR), **fields)


async def test_retry_continues_held_saga(holds, did):
    async def main(cp: Orchestration) -> Any:
        await run_step(cp, "flight")
        await cp.parallel(held(cp, "hotel", fails=1))
        return await run_step(cp, "payment")

    key = await holds.start(main)
    found = await holds.held(key, "hotel")
    assert (found.kind, found.error, found.status_code) == ("held_step", "hotel is out of order", 503)
    assert (found.action, found.payload["name"]) == ("Tasks/do", "hotel")
    assert (await holds.status(key)).metadata["held"]["hotel"]["id"] == found.id
    await holds.act(found, HeldStepAction.RETRY)
    assert await holds.result(key) == "PAYMENT"
    done = ["do flight", "done flight", "do hotel", "do hotel", "done hotel", "do payment", "done payment"]
    assert did.of(key) == done
    assert await holds.gone(key)
    assert "held" not in (await holds.status(key)).metadata
    detail = await holds.ingress.call(show_held_step, found.id)
    assert [(entry.actor, entry.action, entry.reason) for entry in detail.audit_log] == [("olga", "retry", "seen")]
    with pytest.raises(IngressError, match="is not held any longer"):
        await holds.act(found, HeldStepAction.ROLL_BACK)


async def test_edited_payload_is_validated_and_sent(holds, did):
    async def main(cp: Orchestration) -> Any:
        return await cp.parallel(held(cp, "hotel", fails=-1))

    key = await holds.start(main)
    found = await holds.held(key, "hotel")
    with pytest.raises(IngressError, match="payload: name is an integer, not a string"):
        await holds.act(found, HeldStepAction.RETRY, payload={**found.payload, "name": 7})
    with pytest.raises(IngressError, match="payload: name is missing"):
        await holds.act(found, HeldStepAction.RETRY, payload={"key": key})
    await holds.act(found, HeldStepAction.RETRY)
    again = await holds.held(key, "hotel", times=2)
    assert again.since > found.since
    assert again.until - again.since == HOUR
    await holds.act(again, HeldStepAction.RETRY, payload={**again.payload, "name": "hostel", "fails": 0})
    assert await holds.result(key) == ["HOSTEL"]


async def test_rollback_compensates_original_and_edited_request(holds, did):
    async def main(cp: Orchestration) -> Any:
        hotel = held(cp, "hotel", fails=-1)
        await cp.parallel(replace(hotel, compensate=undo_task))  # it receives the step's request
        raise Refused("enough", 410)

    key = await holds.start(main)
    found = await holds.held(key, "hotel")
    await holds.act(found, HeldStepAction.RETRY, payload={**found.payload, "name": "hostel", "fails": 0})
    assert "enough" in str(await holds.result(key))
    assert holds.bench.undone(key) == ["undo hostel", "undo hotel"]
    assert did.of(key)[:3] == ["do hotel", "do hostel", "done hostel"]


async def test_value_that_schema_accepts_is_held_again(holds):
    async def even(number: int) -> Annotated[int, Field(multiple_of=2)]:
        raise Refused(f"{number} is odd", 422)

    async def main(cp: Orchestration) -> Any:
        return await cp.step("even", even, 3, on_failure=Hold(HOUR))

    key = await holds.start(main)
    found = await holds.held(key, "even")
    assert (found.action, found.payload) == ("run", 3)
    with pytest.raises(IngressError, match="result: the value is a string, not an integer"):
        await holds.act(found, HeldStepAction.COMPLETE, result="four")
    await holds.act(found, HeldStepAction.COMPLETE, result=5)
    again = await holds.held(key, "even", times=2)
    assert "3 is odd; the value of the last complete was refused" in again.error
    await holds.act(again, HeldStepAction.COMPLETE, result=6)
    assert await holds.result(key) == 6


async def test_completed_step_is_compensated_later(holds, did):
    async def main(cp: Orchestration) -> Any:
        first = await cp.parallel(held(cp, "hotel", fails=-1))
        await run_step(cp, f"after {first[0]}", fails=-1)

    key = await holds.start(main)
    await holds.act(await holds.held(key, "hotel"), HeldStepAction.COMPLETE, result="by phone")
    error = await holds.result(key)
    assert error.message == "step 'after by phone' failed: after by phone is out of order"
    assert [each for each in did.of(key) if "undo" in each] == ["undo after by phone", "undo hotel"]


async def test_other_parallel_steps_go_on(holds, did):
    async def main(cp: Orchestration) -> Any:
        retry = RetryPolicy(timedelta(milliseconds=10), max_attempts=3)
        flight = replace(step(cp, "flight", fails=2), retry=retry)
        return await cp.parallel(held(cp, "hotel", fails=1), held(cp, "car", fails=1), flight)

    key = await holds.start(main)
    hotel, car = await holds.held(key, "hotel"), await holds.held(key, "car")
    await eventually(truth(lambda: did.count(f"done {key}/flight") == 1), what="end of the flight")
    await holds.act(hotel, HeldStepAction.RETRY)
    await eventually(truth(lambda: did.count(f"done {key}/hotel") == 1), what="end of the hotel")
    await holds.act(car, HeldStepAction.COMPLETE, result="own car")
    assert await holds.result(key) == ["HOTEL", "own car", "FLIGHT"]


@pytest.mark.parametrize("how", ["roll_back", "deadline", "cancel"])
async def test_hold_ends_in_rollback(holds, did, how):
    async def main(cp: Orchestration) -> Any:
        await run_step(cp, "flight")
        hold = Hold(timedelta(milliseconds=50) if how == "deadline" else HOUR)
        await cp.parallel(held(cp, "hotel", hold, fails=-1), step(cp, "car"))

    key = await holds.start(main)
    if how != "deadline":
        found = await holds.held(key, "hotel")
    if how == "roll_back":
        await holds.act(found, HeldStepAction.ROLL_BACK)
    if how == "cancel":
        await holds.control(found.invocation, "cancel")
    error = await holds.result(key)
    assert ("cancelled" if how == "cancel" else "step 'hotel' failed: hotel is out of order") in error.message
    await holds.until_phase(key, "cancelled" if how == "cancel" else "rolled_back")
    await eventually(truth(lambda: len(holds.bench.undone(key)) == 3), what="rollback")
    assert holds.bench.undone(key)[-1] == "undo flight"
    assert await holds.gone(key)


async def test_held_step_past_pivot_becomes_dead_letter(holds):
    async def main(cp: Orchestration) -> Any:
        await run_step(cp, "flight")
        cp.pivot()
        await cp.step("mail", do_task, Task(key=cp.key, name="mail", fails=-1), on_failure=Hold(HOUR))

    key = await holds.start(main)
    found = await holds.held(key, "mail")
    assert found.past_pivot
    with pytest.raises(IngressError, match="past its pivot and cannot be rolled back"):
        await holds.act(found, HeldStepAction.ROLL_BACK)
    await holds.act(found, HeldStepAction.COMPLETE, result="sent by hand")
    assert await holds.result(key) is None


async def test_hold_applies_to_chosen_statuses(holds):
    async def main(cp: Orchestration) -> Any:
        await cp.parallel(held(cp, "hotel", Hold(HOUR, statuses={500}), fails=-1))

    key = await holds.start(main)
    assert (await holds.result(key)).message == "step 'hotel' failed: hotel is out of order"


async def test_service_default_holds_child_and_its_retry(bench, did):
    holds, child_name = Holds(bench), f"Child{uuid4().hex[:8]}"

    async def child(cp: Orchestration) -> str:
        await run_step(cp, "c1")
        if not cp.key.endswith(".2"):
            raise Refused("the child was refused", 422)
        return cp.key

    async def main(cp: Orchestration) -> Any:
        package = await cp.child("package", Target(child_name, "run", None, object), None)  # type: ignore[call-overload]
        await cp.parallel(step(cp, "b", on_failure="roll_back", fails=-1))
        return package

    services = [bench.orchestration(child_name, child, SagaConfig(**QUICK))]
    await bench.serve(holds.main, *services, on_failure=Hold(HOUR))
    key = await holds.start(main)
    found = await holds.held(key, "package")
    assert found.error == "the child was refused"
    await holds.act(found, HeldStepAction.RETRY)
    assert (await holds.result(key)).message == "step 'b' failed: b is out of order"
    undone = [entry for entry in did.all() if entry.startswith("undo")]
    assert undone[0].endswith(":package/c1")  # the failed child rolls itself back
    assert undone[1] == f"undo {key}/b"
    assert undone[2].endswith(":package.2/c1")
    assert len(undone) == 3


async def test_bulk_action_confirms_group_in_batches(holds, did):
    async def main(cp: Orchestration) -> Any:
        return await cp.parallel(held(cp, f"bulk {holds.bench.name}", fails=1))

    keys = [await holds.start(main) for _ in range(7)]
    wanted = HeldStepFilter(service=holds.bench.name, step=f"bulk {holds.bench.name}")

    async def all_held() -> bool:
        page = await holds.ingress.call(list_held_steps, HeldStepListRequest(**dict(wanted), limit=3))
        return page.total == 7

    await eventually(all_held, what="7 held steps")
    page = await holds.ingress.call(list_held_steps, HeldStepListRequest(**dict(wanted), limit=3))
    assert [(group.count, group.signature) for group in page.groups] == [(7, page.items[0].signature)]
    rest = await holds.ingress.call(list_held_steps, HeldStepListRequest(**dict(wanted), after=page.next))
    assert len(page.items + rest.items) == len({each.id for each in page.items + rest.items}) == 7
    by_error = wanted.model_copy(update={"signature": page.groups[0].signature})
    request = HeldStepBulkRequest(action=HeldStepAction.RETRY, actor="olga", filter=by_error, limit=4)
    dry = await holds.ingress.call(act_on_held_steps, request.model_copy(update={"dry_run": True}))
    assert (len(dry.done), await all_held()) == (4, True)
    first = await holds.ingress.call(act_on_held_steps, request)
    second = await holds.ingress.call(act_on_held_steps, request.model_copy(update={"after": first.next}))
    assert (len(first.done), len(second.done), second.next) == (4, 3, None)
    assert [len(await holds.result(key)) for key in keys] == [1] * 7
    with pytest.raises(IngressError, match="set at least one field"):
        await holds.ingress.call(act_on_held_steps, request.model_copy(update={"filter": HeldStepFilter()}))


async def test_signed_actions_are_required_and_bound(holds, signed_acts):
    async def main(cp: Orchestration) -> Any:
        return await cp.parallel(held(cp, "hotel", fails=1))

    key = await holds.start(main)
    found = await holds.held(key, "hotel")
    action, at = HeldStepAction.COMPLETE, datetime.now(UTC)
    with pytest.raises(IngressError, match="must be signed"):
        await holds.act(found, action, result="x")
    for signed in (
        sign_held_step_action(VERA, action, found, reason="seen", result="x", at=at),  # not an operator
        sign_held_step_action(OLGA, action, found, reason="seen", result="y", at=at),  # another result
        sign_held_step_action(OLGA, HeldStepAction.RETRY, found, reason="seen", at=at),
        sign_held_step_action(OLGA, action, found.model_copy(update={"error": "?"}), reason="seen", result="x", at=at),
    ):
        with pytest.raises(IngressError) as refused:
            await holds.act(found, action, result="x", actor=signed.credential.actor, signed_action=signed)
        assert refused.value.status_code in (401, 403, 409)
    signed = sign_held_step_action(OLGA, action, found, reason="seen", result="x", at=at)
    await holds.act(found, action, result="x", actor=OLGA.actor, signed_action=signed)
    assert await holds.result(key) == ["x"]
    detail = await holds.ingress.call(show_held_step, found.id)
    assert [entry.signed_action for entry in detail.audit_log] == [signed]


@pytest.mark.restate_modes("http2")
async def test_command_line_lists_and_acts(holds, restate):
    urls = {"PERDURE_INGRESS_URL": restate.server.ingress, "PERDURE_ADMIN_URL": restate.server.admin}
    urls["PERDURE_ACTOR"] = "olga"

    async def perdure(*words: str) -> str:
        done = await asyncio.to_thread(run_perdure, "held-steps", *words, **urls)
        return done.stdout + done.stderr

    async def main(cp: Orchestration) -> Any:
        return await cp.parallel(held(cp, "hotel", fails=1))

    keys = [await holds.start(main) for _ in range(4)]
    first, *_ = [await holds.held(key, "hotel") for key in keys]
    service = ("--all", "--service", holds.bench.name)
    assert "4 held steps" in await perdure("list", *service[1:])
    page = json.loads(await perdure("list", *service[1:], "--json", "--limit", "1"))
    rest = json.loads(await perdure("list", *service[1:], "--json", "--after", page["next"]))
    assert len({each["id"] for each in page["items"] + rest["items"]}) == 4
    shown = await perdure("show", first.id)
    assert f"To retry: perdure held-steps retry {first.id} (to give up: roll-back)" in shown
    timeline = await asyncio.to_thread(run_perdure, "sagas", "show", keys[0], **urls)
    assert f"The step hotel is held: perdure held-steps show {first.id}\n" in timeline.stdout
    for words, problem in {
        ("retry",): "pass either the ID of a held step, or --all with --saga",
        ("retry", *service, "--payload", "{}"): "--payload applies to one held step",
        ("retry", first.id, "--dry-run"): "--dry-run applies to --all",
        ("complete", first.id, "--result", "{"): "--result is not JSON",
        ("complete", first.id): "result: the value is null, not a string",
        ("show", "missing/1"): "no held step 'missing/1'",
    }.items():
        assert problem in await perdure(*words)
    assert await perdure("complete", first.id, "--result", '"by phone"', "-m", "called") == (
        f"{first.id}: complete recorded.\n"
    )
    assert await holds.result(keys[0]) == ["by phone"]
    shown = await perdure("show", first.id)
    assert "complete  called  (unsigned)" in shown
    assert "Not held any longer: complete" in shown
    assert "3 held steps match" in await perdure("retry", *service, "--dry-run")
    assert await perdure("retry", *service) == "retry: 3 succeeded, 0 refused\n"
    assert [await holds.result(key) for key in keys[1:]] == [["HOTEL"]] * 3
    timeline = await asyncio.to_thread(run_perdure, "sagas", "show", keys[1], "--json", **urls)
    (shown_step,) = json.loads(timeline.stdout)["steps"]
    assert (shown_step["action"], shown_step["attempts"], shown_step["result"]) == ("Tasks/do", 2, "success")
    assert "No held steps." in await perdure("list", *service[1:])
