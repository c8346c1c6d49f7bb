"""`SagaOperations`: operator actions on running and ended sagas, one or many, each signed once and audited.

An operation is a virtual object with a random ID. Its request lists the sagas that the operator has seen, and the
signature covers that list. The object stores it as its audit entry, and performs it in batches, one invocation each, so
that a process may die at any time and no journal grows with the number of sagas.

An action of a batch may be repeated after a crash. A cancel or kill of an ended saga, and a restart of a restarted one,
are recognised by status and start time, since an execution under a reused key has the same invocation ID.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

import restate
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, TypeAdapter

from perdure._runtime.admin_url import ADMIN_URL_SETTING, admin_url
from perdure._runtime.dispatch import DAY_LONG_RETRIES
from perdure._runtime.places import Place, ValueCodec
from perdure._runtime.plain_text import Reason
from perdure._runtime.records import StoredRecord
from perdure._runtime.sealing import codec_of
from perdure.clients import ObjectClient
from perdure.determinism import Time
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import Conflict, EngineError, InvalidInput, NotFound, SagaError
from perdure.handlers import handler
from perdure.observability.gauge_collector import decode_state_value
from perdure.observability.lifecycle import SAGA_HEADER
from perdure.observability.logging import get_logger
from perdure.runs import RunConfig, run_with_retry
from perdure.saga.filters import MAX_SAGAS, batches, sagas_by_id
from perdure.saga.queries import SagaRow
from perdure.saga.status import SagaPhase
from perdure.security.credentials import Role
from perdure.security.encodings import json_digest
from perdure.security.nonces import NonceLog
from perdure.security.signed_actions import ActorKey, SignedAction, get_signing_rules
from perdure.security.user_names import UserName
from perdure.state import State
from perdure.targets import KeyedTarget

log = get_logger(__name__)

SAGA_OPERATIONS: Final = "SagaOperations"

_OPERATION_KEY: Final = "operation"
_DONE_KEY: Final = "done"
_BATCH: Final = 100
_RESTART_BATCH: Final = 10  # each restart adds its input and three entries to the journal
_CONCURRENT_REQUESTS: Final = 8
_ENGINE_OUTAGE: Final = timedelta(days=1)
_MAX_LISTED: Final = 1_000

_datetime = TypeAdapter(datetime)


class SagaAction(StrEnum):
    """Operator action on a saga.

    ``CANCEL`` ends its orchestration, which rolls it back; ``KILL`` ends it without notice, and the reconciler rolls it
    back; ``RESUME`` continues its paused invocations and retries its failing ones at once; ``RESTART`` starts an ended
    saga again with the same input, as a new execution under the same key.
    """

    CANCEL = "cancel"
    KILL = "kill"
    RESUME = "resume"
    RESTART = "restart"

    @property
    def signed_name(self) -> str:
        """The action that a signature names."""
        return f"{self.value}_sagas"

    @property
    def phases(self) -> tuple[SagaPhase, ...]:
        """The phases that a filter selects by default."""
        return _PHASES[self]


_PHASES: Final = {
    SagaAction.CANCEL: (SagaPhase.RUNNING, SagaPhase.PAUSED),
    SagaAction.KILL: (SagaPhase.RUNNING, SagaPhase.PAUSED),
    SagaAction.RESUME: (SagaPhase.PAUSED, SagaPhase.RUNNING),
    SagaAction.RESTART: (SagaPhase.FAILED, SagaPhase.CANCELLED, SagaPhase.ROLLED_BACK),
}


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SagaTarget(_Input):
    """A saga that an operator has seen.

    Args:
        id: The invocation of its orchestration.
        service: Its service.
        key: Its key.
        started_at: When it was started.
    """

    id: Annotated[str, StringConstraints(pattern=r"^inv_[a-zA-Z0-9]{16,64}$")]
    service: str
    key: str
    started_at: AwareDatetime

    @classmethod
    def of(cls, saga: SagaRow) -> SagaTarget:
        """Return the target of a listed saga."""
        return cls(id=saga.id, service=saga.service, key=saga.key, started_at=saga.started_at)

    @property
    def name(self) -> str:
        """``{service}/{key}``."""
        return f"{self.service}/{self.key}"


class SagaOperationRequest(_Input):
    """An operator action on sagas.

    Args:
        action: The action.
        actor: The operator.
        reason: Why.
        selection: How the operator selected the sagas, for the audit log.
        sagas: The sagas.
        signed_action: The operator's signed action, where actions must be signed; see `sign_operation`.
    """

    action: SagaAction
    actor: UserName
    reason: Reason = ""
    selection: Annotated[str, StringConstraints(max_length=1000)] = ""
    sagas: list[SagaTarget] = Field(min_length=1, max_length=MAX_SAGAS)
    signed_action: SignedAction | None = None


class SagaOutcome(BaseModel):
    """Result of an action on one saga.

    Args:
        saga: ``{service}/{key}``.
        accepted: Whether the action was performed.
        message: The effect, or the reason for the refusal.
    """

    saga: str
    accepted: bool
    message: str


class SagaOperation(BaseModel):
    """An operation: its audit entry and its progress.

    Args:
        id: Its ID.
        action: The action.
        actor: The operator.
        reason: The operator's reason.
        selection: How the operator selected the sagas.
        at: When it was accepted.
        total: Number of sagas.
        done: Number of sagas that it has acted on.
        refused: Number of sagas whose state did not permit the action.
        signed_action: The operator's signed action; None if unsigned, and then the actor is unverified.
        outcomes: The result for each saga, in their order; empty in lists.
    """

    id: str
    action: SagaAction
    actor: str
    reason: str = ""
    selection: str = ""
    at: datetime
    total: int
    done: int = 0
    refused: int = 0
    signed_action: SignedAction | None = None
    outcomes: list[SagaOutcome] = []

    @property
    def has_ended(self) -> bool:
        """Whether it has acted on all sagas."""
        return self.done == self.total


class _StoredOperation(StoredRecord):
    action: SagaAction
    actor: str
    reason: str
    selection: str
    at: datetime
    total: int
    digest: str
    batches: int
    signed_action: SignedAction | None = None


class _StoredBatch(StoredRecord):
    sagas: list[SagaTarget]
    outcomes: list[SagaOutcome] = Field(default_factory=list)


class _Progress(StoredRecord):
    batches: int = 0
    done: int = 0
    refused: int = 0


class _RestartInput(BaseModel):
    """The input of an ended execution, still sealed; or why the execution cannot be started again."""

    refusal: str = ""
    payload: str = ""


start_operation: KeyedTarget[SagaOperationRequest, SagaOperation] = KeyedTarget(
    SAGA_OPERATIONS, "start", SagaOperationRequest, SagaOperation
)
operation_status: KeyedTarget[None, SagaOperation] = KeyedTarget(SAGA_OPERATIONS, "status", None, SagaOperation)
_perform = KeyedTarget(SAGA_OPERATIONS, "perform", int, None)
_purge = KeyedTarget(SAGA_OPERATIONS, "purge", None, None)


def sign_operation(
    key: ActorKey,
    operation: str,
    action: SagaAction,
    sagas: Sequence[SagaTarget],
    *,
    reason: str = "",
    selection: str = "",
    at: datetime,
) -> SignedAction:
    """Sign an operation, for the ``signed_action`` of a `SagaOperationRequest`.

    Args:
        key: The operator's key.
        operation: The ID of the operation, the key of its `SagaOperations` object.
        action: The action.
        sagas: The sagas as displayed.
        reason: Why.
        selection: See `SagaOperationRequest`.
        at: The current time.
    """
    return key.sign(
        action.signed_name,
        _signed_target(operation),
        _digest(sagas),
        reason=reason,
        details=_details(selection),
        at=at,
    )


class SagaOperations:
    """Handlers of `SagaOperations`.

    Args:
        retention: How long an operation is stored after its start; None for ever.
    """

    def __init__(self, retention: timedelta | None) -> None:
        self._retention = retention
        self.definition = restate.VirtualObject(
            SAGA_OPERATIONS,
            description="Operator actions on sagas, and their audit log.",
            invocation_retry_policy=DAY_LONG_RETRIES,
        )
        handler(self.definition, "exclusive", enable_lazy_state=True, ingress_private=False)(self.start)
        handler(self.definition, "exclusive", enable_lazy_state=True, ingress_private=True)(self.perform)
        handler(self.definition, "exclusive", ingress_private=True)(self.purge)
        handler(self.definition, "shared", enable_lazy_state=True, read_only=True, ingress_private=False)(self.status)

    async def start(self, ctx: restate.ObjectContext, request: SagaOperationRequest) -> SagaOperation:
        """Accept an operation and start it. A repeated request changes nothing."""
        digest = json_digest(request.model_dump(mode="json", exclude={"signed_action"}))
        known = await _operation(ctx).get()
        if known is not None:
            if known.digest != digest:
                raise Conflict(f"the operation '{ctx.key()}' is another one: choose a new ID")
            return await _read(ctx, known)
        if admin_url() is None:
            raise SagaError(f"the service of {SAGA_OPERATIONS} needs the engine's admin API: set {ADMIN_URL_SETTING}")
        now = await Time(ctx).now()
        # The object accepts one request, so that it needs no log of nonces.
        signer, _ = get_signing_rules().check(
            request.signed_action,
            action=request.action.signed_name,
            target=_signed_target(ctx.key()),
            payload_digest=_digest(request.sagas),
            now=now,
            actor=request.actor,
            reason=request.reason,
            details=_details(request.selection),
            role=Role.OPERATOR,
            nonces=NonceLog(),
        )
        size = _RESTART_BATCH if request.action is SagaAction.RESTART else _BATCH
        number = 0
        for number, sagas in enumerate(batches(request.sagas, size), 1):
            await _batch(ctx, number).set(_StoredBatch(sagas=list(sagas)))
        operation = _StoredOperation(
            action=request.action,
            actor=request.actor if signer is None else signer.actor,
            reason=request.reason,
            selection=request.selection,
            at=now,
            total=len(request.sagas),
            digest=digest,
            batches=number,
            signed_action=request.signed_action,
        )
        await _operation(ctx).set(operation)
        client = ObjectClient(ctx, _perform, ctx.key())
        await client.send(1)
        if self._retention is not None:
            await ObjectClient(ctx, _purge, ctx.key()).send(delay=self._retention)
        log.warning(
            "sagas.operation", action=operation.action, actor=operation.actor, sagas=operation.total, id=ctx.key()
        )
        return _describe(ctx.key(), operation, _Progress())

    async def perform(self, ctx: restate.ObjectContext, number: int) -> None:
        """Act on one batch of sagas, and start the next one."""
        operation, batch = await _operation(ctx).get(), await _batch(ctx, number).get()
        progress = await _progress(ctx).get() or _Progress()
        if operation is None or batch is None or progress.batches >= number:
            return
        if operation.action is SagaAction.RESTART:
            outcomes = await _restart_all(ctx, batch.sagas)
        else:
            config = RunConfig(f"{operation.action} {len(batch.sagas)} sagas", max_duration=_ENGINE_OUTAGE)
            outcomes = await run_with_retry(ctx, config, _act_on_all, operation.action, batch.sagas)
        await _batch(ctx, number).set(batch.model_copy(update={"outcomes": outcomes}))
        refused = sum(not each.accepted for each in outcomes)
        await _progress(ctx).set(
            _Progress(batches=number, done=progress.done + len(outcomes), refused=progress.refused + refused)
        )
        if number < operation.batches:
            await ObjectClient(ctx, _perform, ctx.key()).send(number + 1)

    async def status(self, ctx: restate.ObjectSharedContext) -> SagaOperation:
        """Return an operation with the outcomes so far."""
        operation = await _operation(ctx).get()
        if operation is None:
            raise NotFound(f"there is no operation '{ctx.key()}', or its retention is over")
        return await _read(ctx, operation)

    async def purge(self, ctx: restate.ObjectContext) -> None:
        """Delete the operation after its retention."""
        ctx.clear_all()


async def _read(ctx: restate.ObjectContext | restate.ObjectSharedContext, stored: _StoredOperation) -> SagaOperation:
    progress = await _progress(ctx).get() or _Progress()
    found = _describe(ctx.key(), stored, progress)
    for number in range(1, progress.batches + 1):
        batch = await _batch(ctx, number).get()
        found.outcomes += [] if batch is None else batch.outcomes
    return found


async def _act_on_all(action: SagaAction, sagas: list[SagaTarget]) -> list[SagaOutcome]:
    limit = asyncio.Semaphore(_CONCURRENT_REQUESTS)
    async with _admin() as admin:
        rows = await _rows(admin, sagas)
        open_ones = await _open_invocations(admin, sagas) if action is SagaAction.RESUME else {}

        async def act(saga: SagaTarget) -> SagaOutcome:
            async with limit:
                refusal = _refusal(saga, rows.get(saga.id))
                if refusal is not None:
                    return _outcome(saga, refusal, accepted=False)
                if action is SagaAction.RESUME:
                    return await _resume(admin, saga, open_ones.get(saga.id, []))
                if not await admin.control_if_permitted(saga.id, "cancel" if action is SagaAction.CANCEL else "kill"):
                    return _outcome(saga, "it has ended", accepted=False)
                return _outcome(saga, _DONE[action], accepted=True)

        return list(await asyncio.gather(*(act(saga) for saga in sagas)))


_DONE: Final = {
    SagaAction.CANCEL: "cancellation requested",
    SagaAction.KILL: "killed; the reconciler starts its rollback",
    SagaAction.RESUME: "resumed",
    SagaAction.RESTART: "restarted",
}


async def _resume(admin: AdminClient, saga: SagaTarget, invocations: list[str]) -> SagaOutcome:
    if not invocations:
        return _outcome(saga, "none of its invocations is paused or fails", accepted=False)
    resumed = [id_ for id_ in invocations if await admin.control_if_permitted(id_, "resume")]
    if not resumed:
        return _outcome(saga, "its failing invocation is being retried", accepted=True)
    return _outcome(saga, f"{_DONE[SagaAction.RESUME]}: {', '.join(resumed)}", accepted=True)


async def _restart_all(ctx: restate.ObjectContext, sagas: list[SagaTarget]) -> list[SagaOutcome]:
    """Restart sagas. The input is journaled before the purge deletes it."""
    config = RunConfig("read inputs", max_duration=_ENGINE_OUTAGE)
    inputs = await run_with_retry(ctx, config, _read_inputs, sagas)
    outcomes = []
    for saga, found in zip(sagas, inputs, strict=True):
        if found.refusal:
            outcomes.append(_outcome(saga, found.refusal, accepted=False))
            continue
        payload = _open_input(codec_of(ctx), saga, bytes.fromhex(found.payload))
        config = RunConfig(f"purge {saga.name}"[:200], max_duration=_ENGINE_OUTAGE)
        await run_with_retry(ctx, config, _purge_execution, saga)
        ctx.generic_send(saga.service, "run", payload, key=saga.key)
        outcomes.append(_outcome(saga, _DONE[SagaAction.RESTART], accepted=True))
    return outcomes


def _open_input(codec: ValueCodec | None, saga: SagaTarget, payload: bytes) -> bytes:
    return payload if codec is None else codec.open(payload, Place.input(saga.service, saga.key, "run"))


async def _read_inputs(sagas: list[SagaTarget]) -> list[_RestartInput]:
    ids = ", ".join(sql_text(saga.id) for saga in sagas)
    async with _admin() as admin:
        rows = await _rows(admin, sagas)
        phases = {id_: saga.phase for id_, saga in (await sagas_by_id(admin, [saga.id for saga in sagas])).items()}
        inputs = {
            row["id"]: json.loads(row["entry_json"])["Command"]["Input"]
            for row in await admin.query(
                f"select id, entry_json from sys_journal where id in ({ids}) and entry_type = 'Command: Input'"
            )
        }
        services = {str(each["name"]) for each in await admin.services()}
    found = []
    for saga in sagas:
        refusal = _refusal(saga, rows.get(saga.id), ended=True)
        if refusal is None:
            refusal = _restart_refusal(phases.get(saga.id), inputs.get(saga.id))
        if refusal is None and saga.service not in services:
            refusal = f"the service {saga.service} is not registered"  # the engine would retry the send without end
        payload = "" if refusal else bytes(inputs[saga.id]["payload"]).hex()
        found.append(_RestartInput(refusal=refusal or "", payload=payload))
    return found


def _restart_refusal(phase: SagaPhase | None, entry: dict[str, Any] | None) -> str | None:
    if phase not in SagaAction.RESTART.phases:
        return f"its phase is {phase}: only sagas that are failed, cancelled or rolled_back can be started again"
    if entry is None:
        return "the retention of its journal is over, so its input is unknown: send it again under a new key"
    parent = next((each["value"] for each in entry["headers"] if each["name"] == SAGA_HEADER), None)
    return None if parent is None else f"it is a child of the saga '{parent}': restart that one"


async def _purge_execution(saga: SagaTarget) -> None:
    async with _admin() as admin:
        rows = await _rows(admin, [saga])
        if _refusal(saga, rows.get(saga.id), ended=True) is None:
            await admin.control_if_permitted(saga.id, "purge")


def _refusal(saga: SagaTarget, row: dict[str, Any] | None, *, ended: bool = False) -> str | None:
    """Return why an action is refused because the execution is another one, or has or has not ended."""
    if row is None:
        return "it does not exist, or the retention of its workflow is over"
    if (row["service"], row["key"]) != (saga.service, saga.key):
        return f"the invocation {saga.id} belongs to {row['service']}/{row['key']}"
    if _datetime.validate_python(row["started_at"]) != saga.started_at:
        return "another execution was started under its key"
    if ended:
        return None if row["status"] == "completed" else "it has not ended: cancel it first"
    return "it has ended" if row["status"] == "completed" else None


async def _rows(admin: AdminClient, sagas: Sequence[SagaTarget]) -> dict[str, dict[str, Any]]:
    ids = ", ".join(sql_text(saga.id) for saga in sagas)
    rows = await admin.query(
        "select id, status, target_service_name as service, target_service_key as key, created_at as started_at "
        f"from sys_invocation_status where id in ({ids}) and target_service_ty = 'workflow' "
        "and target_handler_name = 'run'"
    )
    return {row["id"]: row for row in rows}


async def _open_invocations(admin: AdminClient, sagas: Sequence[SagaTarget]) -> dict[str, list[str]]:
    """Return the paused and failing invocations among sagas and their calls, by saga."""
    ids = ", ".join(sql_text(saga.id) for saga in sagas)
    found: dict[str, list[str]] = {saga.id: [] for saga in sagas}
    for row in await admin.query(
        "select id, invoked_by_id from sys_invocation where "
        "(status = 'paused' or (status != 'completed' and last_failure is not null)) "
        f"and (id in ({ids}) or invoked_by_id in ({ids})) order by id"
    ):
        for saga in {row["id"], row.get("invoked_by_id")} & found.keys():
            found[saga].append(row["id"])
    return found


def _admin() -> AdminClient:
    url = admin_url()
    if url is None:
        raise EngineError(f"set {ADMIN_URL_SETTING} for the service of {SAGA_OPERATIONS}")
    return AdminClient(url)


def _outcome(saga: SagaTarget, message: str, *, accepted: bool) -> SagaOutcome:
    return SagaOutcome(saga=saga.name, accepted=accepted, message=message)


def _describe(operation_id: str, stored: _StoredOperation, progress: _Progress) -> SagaOperation:
    return SagaOperation(
        id=operation_id,
        action=stored.action,
        actor=stored.actor,
        reason=stored.reason,
        selection=stored.selection,
        at=stored.at,
        total=stored.total,
        done=progress.done,
        refused=progress.refused,
        signed_action=stored.signed_action,
    )


def _signed_target(operation: str) -> str:
    if len(operation) > 100:
        raise InvalidInput("invalid input: key: an operation ID has at most 100 characters", metadata={"field": "key"})
    return f"{SAGA_OPERATIONS}/{operation}"


def _digest(sagas: Sequence[SagaTarget]) -> str:
    return json_digest([saga.model_dump(mode="json") for saga in sagas])


def _details(selection: str) -> JsonValue:
    return {"selection": selection}


def _operation(ctx: Any) -> State[_StoredOperation]:
    return State(ctx, _OPERATION_KEY, _StoredOperation)


def _progress(ctx: Any) -> State[_Progress]:
    return State(ctx, _DONE_KEY, _Progress)


def _batch(ctx: Any, number: int) -> State[_StoredBatch]:
    return State(ctx, f"batch/{number:06d}", _StoredBatch)


async def read_audit_log(
    admin: AdminClient, codec: ValueCodec | None, *, service: str | None = None, key: str | None = None
) -> list[SagaOperation]:
    """Return the stored operations from the engine's tables, newest first, at most 1,000.

    Args:
        admin: The engine.
        codec: Encryption of the journal; None if it is not encrypted.
        service: With ``key``: only operations on this saga, with its outcome.
        key: Only operations on sagas with this key.

    Raises:
        UnreadableValue: The journal is encrypted with another key.
        EngineError: The engine does not answer.
    """
    names = f"('{_OPERATION_KEY}', '{_DONE_KEY}')"
    state: dict[str, dict[str, bytes]] = {}
    columns = "service_name, service_key, key, encode(value, 'hex') as value"
    batch = "or key like 'batch/%'" if key is not None else ""
    for row in await admin.query(
        f"select {columns} from state where service_name = '{SAGA_OPERATIONS}' and (key in {names} {batch})"
    ):
        state.setdefault(row["service_key"], {})[row["key"]] = decode_state_value(row, codec)
    found = []
    for id_, entries in state.items():
        if _OPERATION_KEY not in entries:
            continue
        done = entries.get(_DONE_KEY)
        progress = _Progress() if done is None else _Progress.model_validate_json(done)
        operation = _describe(id_, _StoredOperation.model_validate_json(entries[_OPERATION_KEY]), progress)
        if key is not None:
            operation.outcomes = _outcomes_of(entries, service, key)
            if not operation.outcomes:
                continue
        found.append(operation)
    return sorted(found, key=lambda each: (each.at, each.id), reverse=True)[:_MAX_LISTED]


def _outcomes_of(entries: dict[str, bytes], service: str | None, key: str) -> list[SagaOutcome]:
    """Return the outcomes of the sagas with a key in the batches of an operation."""
    found = []
    for name, content in entries.items():
        if name.startswith("batch/"):
            batch = _StoredBatch.model_validate_json(content)
            for index, saga in enumerate(batch.sagas):
                if saga.key == key and service in (None, saga.service):
                    waiting = SagaOutcome(saga=saga.name, accepted=True, message="waiting")
                    found.append(batch.outcomes[index] if batch.outcomes else waiting)
    return found
