"""`HeldSteps`: lists the steps that orchestrations hold after a failure, and applies operator actions to them.

`SagaHeldSteps`, a virtual object keyed by the saga's ID, decides each hold: an operator action, the deadline and the
release after a cancel are serialized by the key, so the first one counts. The orchestration waits on an awakeable,
whose completion is only a wake-up, and reads the outcome with `outcome`. `HeldStepIndex` lists the held steps of all
sagas.

Handlers read the clock and their state first, and then only write and send, so a cancel cannot interrupt the writes.
The orchestration repeats its calls, which are idempotent by its random ID, so an entry whose handler was killed is
completed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

import restate
from pydantic import JsonValue

from perdure._runtime.dispatch import DAY_LONG_RETRIES
from perdure._runtime.json_schemas import mismatch, schema_of_value
from perdure._runtime.records import StoredRecord
from perdure._runtime.sdk import is_replaying
from perdure._runtime.serdes import serde_for
from perdure._runtime.time_scale import scaled
from perdure._runtime.waiting import is_own_cancel
from perdure._wake_ups import wake_up
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.errors import Conflict, InvalidInput, NotFound, TerminalError
from perdure.handlers import handler
from perdure.observability.logging import get_logger
from perdure.observability.metrics import OPERATOR_ACTIONS
from perdure.saga.held_step_messages import (
    FailedStep,
    HeldStep,
    HeldStepAction,
    HeldStepActionRequest,
    HeldStepAuditEntry,
    HeldStepBulkReceipt,
    HeldStepBulkRequest,
    HeldStepDetail,
    HeldStepGroup,
    HeldStepListRequest,
    HeldStepPage,
    HeldStepReceipt,
    HoldAnswer,
    HoldCheck,
    HoldOutcome,
    HoldRequest,
    OutcomeRequest,
    Release,
    StepHoldAction,
    act_on_held_steps,
    list_held_steps,
    show_held_step,
)
from perdure.saga.held_step_names import HeldStepName
from perdure.saga.held_step_signatures import check_held_step_action
from perdure.saga.schema import (
    HELD_PREFIX,
    HELD_STEP_INDEX,
    HELD_STEPS,
    HELD_STEPS_KEY,
    SAGA_HELD_STEPS,
    held_step_id,
)
from perdure.state import State, clear_all
from perdure.targets import KeyedTarget

_GRACE: Final = timedelta(minutes=1)
"""Time after the deadline in which the orchestration ends its hold itself."""
_MAX_GROUPS: Final = 50

_step_serde: Final = serde_for(HeldStep)

log = get_logger("perdure.saga.held_steps")


class StoredHold(StoredRecord):
    """A hold as stored by `SagaHeldSteps`.

    Args:
        step: The held step.
        wait: The random ID of the waiting orchestration.
        awakeable: Wakes it.
        request_schema: JSON schema of the step's request.
        result_schema: JSON schema of its result.
        outcome: The outcome; None while the step is held.
    """

    step: HeldStep
    wait: str
    awakeable: str
    request_schema: JsonValue = None
    result_schema: JsonValue = None
    outcome: HoldOutcome | None = None

    def answer(self) -> HoldAnswer:
        """Return the answer to the orchestration."""
        return HoldAnswer(wait=self.wait, until=self.step.until, outcome=self.outcome)


_apply = KeyedTarget(SAGA_HELD_STEPS, "apply", StepHoldAction, HeldStepReceipt)
_check = KeyedTarget(SAGA_HELD_STEPS, "check", HoldCheck, None)
_purge = KeyedTarget(SAGA_HELD_STEPS, "purge", int, None)
_detail = KeyedTarget(SAGA_HELD_STEPS, "detail", int, HeldStepDetail)
_put = KeyedTarget(HELD_STEP_INDEX, "put", HeldStep, None)
_remove = KeyedTarget(HELD_STEP_INDEX, "remove", str, None)
_page = KeyedTarget(HELD_STEP_INDEX, "page", HeldStepListRequest, HeldStepPage)


def _hold(ctx: Any, position: int) -> State[StoredHold]:
    return State(ctx, f"{HELD_PREFIX}{position:06d}", StoredHold)


def _audit_entry(ctx: Any, number: int) -> State[HeldStepAuditEntry]:
    return State(ctx, f"audit_log/{number:06d}", HeldStepAuditEntry)


def _actions(ctx: Any) -> State[int, int]:
    return State(ctx, "actions", int, default=0)


def _generation(ctx: Any) -> State[int, int]:
    """The number of holds and outcomes; an entry purges itself only if nothing has changed since."""
    return State(ctx, "generation", int, default=0)


class SagaHeldSteps:
    """Handlers of `SagaHeldSteps`.

    Args:
        retention: How long outcomes and audit log are stored after the last hold; None for ever.
    """

    def __init__(self, retention: timedelta | None) -> None:
        self._retention = retention
        self.definition = restate.VirtualObject(
            SAGA_HELD_STEPS,
            description="Held steps of a saga, and the outcomes of their holds.",
            ingress_private=True,
            invocation_retry_policy=DAY_LONG_RETRIES,
        )
        for exclusive in (self.hold, self.outcome, self.apply, self.release, self.check, self.purge):
            handler(self.definition, "exclusive")(exclusive)
        handler(self.definition, "shared")(self.detail)

    async def hold(self, ctx: restate.ObjectContext, request: HoldRequest) -> HoldAnswer:
        """Hold a step. A repeated request changes nothing but the awakeable."""
        now = await Time(ctx).now()
        state = _hold(ctx, request.failed.position)
        known = await state.get()
        generation = await _generation(ctx).get()
        if known is not None and known.wait == request.wait:
            held = known.model_copy(update={"awakeable": request.awakeable})
        else:
            if known is not None and known.outcome is None:  # of an execution that was purged
                await _send_removal(ctx, known.step)
            facts = {**{name: getattr(request.failed, name) for name in FailedStep.model_fields}, "since": now}
            remind_every = request.failed.remind_every
            facts["remind_every"] = None if remind_every is None else scaled(remind_every)
            step = HeldStep(
                **facts, id=held_step_id(ctx.key(), request.failed.position), until=now + scaled(request.time_limit)
            )
            held = StoredHold(
                step=step,
                wait=request.wait,
                awakeable=request.awakeable,
                request_schema=request.request_schema,
                result_schema=request.result_schema,
            )
            await _generation(ctx).set(generation + 1)
            late = HoldCheck(position=step.position, wait=request.wait)
            ObjectClient(ctx, _check, ctx.key()).send_scaled(late, scaled(request.time_limit + _GRACE))
            log.warning("saga.step_held", saga=step.saga_id, step=step.step, until=step.until, error=step.error)
        await state.set(held)
        if held.outcome is None:
            await ObjectClient(ctx, _put, HELD_STEPS_KEY).send(held.step)
        return held.answer()

    async def outcome(self, ctx: restate.ObjectContext, request: OutcomeRequest) -> HoldAnswer:
        """Return the outcome to a woken orchestration; at the deadline, the hold has expired."""
        state = _hold(ctx, request.position)
        held = await state.get()
        if held is None or held.wait != request.wait:  # purged, or of another execution
            return HoldAnswer(wait=request.wait, outcome=HoldOutcome(action="released"))
        generation = await _generation(ctx).get()
        if held.outcome is None and request.expired:
            return (await self._end(ctx, held, HoldOutcome(action="expired"), generation)).answer()
        if held.outcome is None:
            await state.set(held.model_copy(update={"awakeable": request.awakeable}))
        return held.answer()

    async def apply(self, ctx: restate.ObjectContext, request: StepHoldAction) -> HeldStepReceipt:
        """Apply an operator action to a held step and add it to the audit log."""
        now = await Time(ctx).now()
        held = await _hold(ctx, request.position).get()
        if held is None:
            raise _not_found(request.id)
        generation, number = await _generation(ctx).get(), await _actions(ctx).get() + 1
        if held.outcome is not None:
            await _send_removal(ctx, held.step)  # the handler that recorded the outcome may have been killed
            wake_up(ctx, held.awakeable)
            raise Conflict(f"step '{held.step.step}' of saga '{held.step.saga_id}' is not held any longer")
        checked = await check_held_step_action(ctx, request, held.step, now=now)
        outcome = _outcome_of(request, held, checked.actor)
        await checked.store(ctx)
        entry = HeldStepAuditEntry(
            number=number,
            at=now,
            actor=checked.actor,
            action=request.action,
            step=held.step.step,
            position=held.step.position,
            reason=request.reason,
            error=held.step.error,
            payload=request.payload,
            result=request.result,
            signed_action=request.signed_action,
        )
        await _audit_entry(ctx, number).set(entry)
        await _actions(ctx).set(number)
        await self._end(ctx, held, outcome, generation)
        log.info(
            "saga.held_step_action",
            saga=held.step.saga_id,
            step=held.step.step,
            action=request.action,
            actor=checked.actor,
        )
        if not is_replaying(ctx):
            OPERATOR_ACTIONS.count(service=held.step.service, action=request.action.value)
        return HeldStepReceipt(id=held.step.id, action=request.action, number=number)

    async def release(self, ctx: restate.ObjectContext, request: Release) -> None:
        """End holds whose orchestration was cancelled or killed."""
        holds = [await _hold(ctx, position).get() for position in await _positions(ctx)]
        generation = await _generation(ctx).get()
        for held in holds:
            if held is None or held.outcome is not None or held.step.service != request.service:
                continue
            if request.waits is not None and held.wait not in request.waits:
                continue
            await self._end(ctx, held, HoldOutcome(action="released"), generation)
            generation += 1

    async def check(self, ctx: restate.ObjectContext, request: HoldCheck) -> None:
        """End a hold whose orchestration did not end it at the deadline, because it was killed and purged."""
        held = await _hold(ctx, request.position).get()
        generation = await _generation(ctx).get()
        if held is not None and held.wait == request.wait and held.outcome is None:
            await self._end(ctx, held, HoldOutcome(action="expired"), generation)

    async def purge(self, ctx: restate.ObjectContext, generation: int) -> None:
        """Delete outcomes and audit log if nothing has changed since."""
        if await _generation(ctx).get() == generation:
            await clear_all(ctx)

    async def detail(self, ctx: restate.ObjectSharedContext, position: int) -> HeldStepDetail:
        """Return a held step, also after its hold, with its audit log."""
        held = await _hold(ctx, position).get()
        if held is None:
            raise _not_found(held_step_id(ctx.key(), position))
        entries = [await _audit_entry(ctx, number + 1).get() for number in range(await _actions(ctx).get())]
        return HeldStepDetail(
            step=held.step,
            outcome=held.outcome,
            request_schema=held.request_schema,
            result_schema=held.result_schema,
            audit_log=[entry for entry in entries if entry is not None and entry.position == position],
        )

    async def _end(
        self, ctx: restate.ObjectContext, held: StoredHold, outcome: HoldOutcome, generation: int
    ) -> StoredHold:
        """Record the outcome of a hold, and wake the orchestration."""
        ended = held.model_copy(update={"outcome": outcome})
        await _hold(ctx, held.step.position).set(ended)
        await _generation(ctx).set(generation + 1)
        await _send_removal(ctx, held.step)
        wake_up(ctx, held.awakeable)
        if self._retention is not None:
            await ObjectClient(ctx, _purge, ctx.key()).send(generation + 1, delay=self._retention)
        return ended


def _outcome_of(request: StepHoldAction, held: StoredHold, actor: str) -> HoldOutcome:
    """Return the outcome of an operator action.

    Raises:
        Conflict: The saga is past its pivot and cannot be rolled back.
        InvalidInput: A value does not fit its type, or the action takes no such value.
    """
    action = request.action
    if request.payload is not None and action is not HeldStepAction.RETRY:
        raise InvalidInput(f"payload: '{action}' takes none; only a retry does", metadata={"field": "payload"})
    if request.result is not None and action is not HeldStepAction.COMPLETE:
        raise InvalidInput(f"result: '{action}' takes none; only complete does", metadata={"field": "result"})
    if action is HeldStepAction.ROLL_BACK and held.step.past_pivot:
        raise Conflict(
            f"saga '{held.step.saga_id}' is past its pivot and cannot be rolled back: retry or complete the step"
        )
    if request.payload is not None:
        _check_value("payload", held.request_schema, request.payload)
    if action is HeldStepAction.COMPLETE:
        _check_value("result", held.result_schema, request.result)
    return HoldOutcome(
        action=action, actor=actor, reason=request.reason, payload=request.payload, result=request.result
    )


def _check_value(field: str, schema: JsonValue, value: JsonValue) -> None:
    if schema is not None and (problem := mismatch(schema, schema_of_value(value))) is not None:
        raise InvalidInput(f"{field}: {problem}", metadata={"field": field})


async def _send_removal(ctx: restate.ObjectContext, step: HeldStep) -> None:
    await ObjectClient(ctx, _remove, HELD_STEPS_KEY).send(str(HeldStepName.of(step)))


async def _positions(ctx: restate.ObjectContext) -> list[int]:
    names = sorted(name for name in await ctx.state_keys() if name.startswith(HELD_PREFIX))
    return [int(name.removeprefix(HELD_PREFIX)) for name in names]


def _not_found(id_: str) -> NotFound:
    return NotFound(f"no held step '{id_[:200]}': `perdure held-steps list` lists all", metadata={"field": "id"})


class HeldStepIndex:
    """Handlers of `HeldStepIndex`."""

    def __init__(self) -> None:
        self.definition = restate.VirtualObject(
            HELD_STEP_INDEX,
            description="Index of the held steps.",
            ingress_private=True,
            invocation_retry_policy=DAY_LONG_RETRIES,
            state_preload=False,
        )
        handler(self.definition, "exclusive")(self.put)
        handler(self.definition, "exclusive")(self.remove)
        handler(self.definition, "shared")(self.page)

    async def put(self, ctx: restate.ObjectContext, step: HeldStep) -> None:
        """Add a held step; a repeated one changes nothing."""
        await State(ctx, str(HeldStepName.of(step)), HeldStep).set(step)

    async def remove(self, ctx: restate.ObjectContext, name: str) -> None:
        """Remove a held step."""
        await State(ctx, name, HeldStep).clear()

    async def page(self, ctx: restate.ObjectSharedContext, request: HeldStepListRequest) -> HeldStepPage:
        """Return one page of held steps, oldest first, and the groups of all matches."""
        named = [(text, name) for text in sorted(await ctx.state_keys()) if (name := HeldStepName.parse(text))]
        matches = [(text, name) for text, name in named if name.matches(request)]
        following = [text for text, _ in matches if request.after is None or text > request.after]
        selected = following[: request.limit]
        counts = Counter(name.signature for _, name in matches).most_common(_MAX_GROUPS)
        examples = {name.signature: text for text, name in matches}
        wanted = list(dict.fromkeys([*selected, *(examples[signature] for signature, _ in counts)]))
        # All reads start before the first one is awaited, for one round trip.
        reads = [ctx.get(text, serde=_step_serde) for text in wanted]
        found = {text: step for text, read in zip(wanted, reads, strict=True) if (step := await read) is not None}
        return HeldStepPage(
            items=[found[text] for text in selected if text in found],
            next=selected[-1] if len(following) > len(selected) else None,
            total=len(matches),
            groups=[
                HeldStepGroup(signature=found[text].signature, count=count)
                for signature, count in counts
                if (text := examples[signature]) in found
            ],
        )


class HeldSteps:
    """Handlers of `HeldSteps`."""

    def __init__(self) -> None:
        self.definition = restate.Service(HELD_STEPS, description="Failed steps that wait for an operator action.")
        handler(self.definition, name=list_held_steps.handler, read_only=True, ingress_private=False)(self.list_)
        handler(self.definition, name=show_held_step.handler, read_only=True, ingress_private=False)(self.show)
        for action in HeldStepAction:
            handler(self.definition, name=action.value, ingress_private=False)(_handler_for(action))
        handler(self.definition, name=act_on_held_steps.handler, ingress_private=False)(self.act_on_many)

    async def list_(self, ctx: restate.Context, request: HeldStepListRequest) -> HeldStepPage:
        """List held steps, oldest first, with the number per error signature."""
        return await ObjectClient(ctx, _page, HELD_STEPS_KEY).call(request)

    async def show(self, ctx: restate.Context, id_: str) -> HeldStepDetail:
        """Return a held step, also after its hold, with its audit log."""
        saga_id, position = _parse_id(id_)
        return await ObjectClient(ctx, _detail, saga_id).call(position)

    async def act_on_many(self, ctx: restate.Context, request: HeldStepBulkRequest) -> HeldStepBulkReceipt:
        """Apply an operator action to one batch of the held steps that match a filter."""
        wanted = request.filter.model_dump(exclude_none=True)
        if not wanted:
            raise InvalidInput("invalid input: filter: set at least one field", metadata={"field": "filter"})
        listing = HeldStepListRequest(**wanted, after=request.after, limit=request.limit)
        page = await ObjectClient(ctx, _page, HELD_STEPS_KEY).call(listing)
        receipt = HeldStepBulkReceipt(next=page.next)
        if request.dry_run:
            return receipt.model_copy(update={"done": [step.id for step in page.items]})
        calls = {}
        for step in page.items:
            one = StepHoldAction(
                id=step.id,
                position=step.position,
                action=request.action,
                actor=request.actor,
                reason=request.reason,
                result=request.result,
                signed_action=request.signed_actions.get(step.id),
            )
            calls[step.id] = ObjectClient(ctx, _apply, step.saga_id).call_async(one)
        for id_, call in calls.items():
            try:
                await call
            except TerminalError as error:
                if is_own_cancel(error):
                    raise
                receipt.refused[id_] = error.message
            else:
                receipt.done.append(id_)
        return receipt


def _handler_for(
    action: HeldStepAction,
) -> Callable[[restate.Context, HeldStepActionRequest], Awaitable[HeldStepReceipt]]:
    async def apply(ctx: restate.Context, request: HeldStepActionRequest) -> HeldStepReceipt:
        saga_id, position = _parse_id(request.id)
        one = StepHoldAction(**dict(request), position=position, action=action)
        return await ObjectClient(ctx, _apply, saga_id).call(one)

    apply.__doc__ = f"{action.value.replace('_', ' ').capitalize()} one held step."
    return apply


def _parse_id(id_: str) -> tuple[str, int]:
    saga_id, _, position = id_.rpartition("/")
    if not saga_id or not position.isdecimal() or len(position) > 6:
        raise _not_found(id_)
    return saga_id, int(position)
