"""Operator actions of `perdure sagas`: cancel, kill, resume, restart, and their audit log."""

from __future__ import annotations

import asyncio
import difflib
import secrets
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer
from pydantic import BaseModel
from rich import box
from rich.table import Table

from perdure.cli.options import (
    DEFAULT_ADMIN,
    DEFAULT_INGRESS,
    ActorOption,
    AdminOption,
    IngressOption,
    JsonOption,
    KeyFileOption,
    ReasonOption,
    explained,
    parse_duration,
    query_engine,
    resolve_actor,
)
from perdure.engine.admin import AdminClient
from perdure.engine.ingress import IngressClient
from perdure.errors import ConfigurationError, InvalidInput
from perdure.saga.attributes import attribute_value
from perdure.saga.filters import MAX_SAGAS, SagaFilter, find_sagas, open_keys, sagas_by_id, sagas_by_name
from perdure.saga.operations import (
    SagaAction,
    SagaOperation,
    SagaOperationRequest,
    SagaTarget,
    operation_status,
    read_audit_log,
    sign_operation,
    start_operation,
)
from perdure.saga.policy import error_signature
from perdure.saga.queries import SagaRow
from perdure.saga.status import SagaPhase
from perdure.security.codec import codec_from_environment
from perdure.security.signed_actions import ActorKey
from perdure.terminal import console

ServiceOption = Annotated[str | None, typer.Option(help="Filter by service.")]
OlderThanOption = Annotated[str | None, typer.Option(help="Only if started before: 15m, 1h30m, 2d.", metavar="AGE")]
SinceOption = Annotated[str, typer.Option(help="Ended sagas: only if started within.", metavar="AGE")]
ErrorOption = Annotated[
    str | None,
    typer.Option(help="Filter by error; * for numbers and IDs.", metavar="TEXT"),
]
AttributeOption = Annotated[
    list[str] | None, typer.Option(help="Filter by a business attribute; repeatable.", metavar="NAME=VALUE")
]

_MAX_PRINTED: Final = 50
_POLL: Final = 0.2  # seconds
_LONGEST_POLL: Final = 3.0
_SETTLE: Final = timedelta(seconds=10)
"""How long a command waits for the sagas to leave the phase that its action ends."""

_HELP: Final = {
    SagaAction.CANCEL: "Cancel sagas: the running step ends, and their steps are compensated.",
    SagaAction.KILL: "Kill sagas without notice. The reconciler rolls them back after a few seconds.",
    SagaAction.RESUME: "Resume the paused invocations of sagas, and retry the failing ones now. Fix the cause first.",
    SagaAction.RESTART: "Start failed, cancelled or rolled-back sagas again: same key, same input, new execution.",
}


class OperationReport(BaseModel):
    """Result of a command.

    Args:
        operation: The operation; None for a dry run.
        sagas: The sagas, with their phases after the action.
    """

    operation: SagaOperation | None
    sagas: list[SagaRow]


class AuditLog(BaseModel):
    """Operations on sagas, newest first."""

    items: list[SagaOperation]


def filter_of(
    phases: Sequence[SagaPhase],
    service: str | None,
    *,
    older_than: str | None,
    since: str,
    error: str | None,
    attribute: Sequence[str] | None,
) -> SagaFilter:
    """Return the filter that the options describe.

    Raises:
        ConfigurationError: An option is invalid.
    """
    return SagaFilter(
        phases=tuple(phases),
        service=service,
        older_than=None if older_than is None else parse_duration("--older-than", older_than),
        since=parse_duration("--since", since),
        error=None if error is None else error_signature(error),
        attributes=parse_attributes(attribute or ()),
    )


def parse_attributes(options: Sequence[str]) -> dict[str, str]:
    """Return the attributes in values of ``--attribute``.

    Raises:
        ConfigurationError: A value is not ``NAME=VALUE``, or repeats a name.
    """
    found: dict[str, str] = {}
    for option in options:
        name, is_pair, value = option.partition("=")
        if not is_pair or name in found:
            raise ConfigurationError(f"--attribute: '{option}' is not NAME=VALUE, or repeats a name")
        try:
            found[name] = attribute_value(name, value)
        except InvalidInput as error:
            raise ConfigurationError(f"--attribute: {error.message}") from error
    return found


async def nearest(engine: AdminClient, saga_id: str) -> str:
    """Return a suggestion of open sagas with a similar ID, for the end of an error message; may be empty."""
    similar = difflib.get_close_matches(saga_id.partition(":")[2] or saga_id, await open_keys(engine))
    return f"; similar open sagas: {', '.join(similar)}" if similar else ""


async def find_named(engine: AdminClient, ids: Sequence[str], service: str | None) -> list[SagaRow]:
    """Return the sagas with the given IDs, in their order.

    Raises:
        ConfigurationError: A saga does not exist, or several services have one with this ID.
    """
    names = list(dict.fromkeys(ids))
    sagas = await sagas_by_name(engine, names, service)
    found: list[SagaRow] = []
    for name in names:
        matches = [saga for saga in sagas if name in (saga.key, f"{saga.service}:{saga.key}")]
        if not matches:
            raise ConfigurationError(
                f"no saga '{name}': it never started, or the retention of its workflow is over"
                f"{await nearest(engine, name)}"
            )
        if len(matches) > 1:
            services = ", ".join(sorted(saga.service for saga in matches))
            raise ConfigurationError(f"several services have a saga '{name}': pass --service, one of {services}")
        found += matches
    return found


def add_commands(app: typer.Typer) -> None:
    """Add the commands to `perdure sagas`."""
    for action in SagaAction:
        _add_command(app, action)
    app.command("audit")(_audit)


def _add_command(app: typer.Typer, action: SagaAction) -> None:
    def command(
        ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The sagas; or use filters.")] = None,
        *,
        phase: Annotated[
            list[SagaPhase] | None,
            typer.Option(metavar="PHASE", help="Filter by phase; repeatable. Default: those that permit it."),
        ] = None,
        service: ServiceOption = None,
        older_than: OlderThanOption = None,
        since: SinceOption = "1d",
        error: ErrorOption = None,
        attribute: AttributeOption = None,
        limit: Annotated[int, typer.Option(min=1, max=MAX_SAGAS, metavar="N", help="Maximum number.")] = MAX_SAGAS,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the sagas.")] = False,
        actor: ActorOption = None,
        key_file: KeyFileOption = None,
        reason: ReasonOption = "",
        as_json: JsonOption = False,
        ingress: IngressOption = DEFAULT_INGRESS,
        admin: AdminOption = DEFAULT_ADMIN,
    ) -> None:
        filters = (phase, older_than, error, attribute)
        if ids and any(filters):
            raise ConfigurationError("pass either saga IDs or filters")
        if not ids and not any((*filters, service)):
            raise ConfigurationError("name the sagas, or select them by a filter such as --service or --phase")
        actor_name, key = ("", None) if dry_run else resolve_actor(actor, key_file)
        wanted = None
        if not ids:
            phases = phase or action.phases
            wanted = filter_of(phases, service, older_than=older_than, since=since, error=error, attribute=attribute)

        async def act() -> OperationReport:
            codec = codec_from_environment()
            client = IngressClient(ingress, timeout=timedelta(seconds=60), codec=codec)
            async with AdminClient(admin) as engine, client:
                if wanted is None:
                    sagas = await find_named(engine, ids or (), service)
                else:
                    sagas = (await find_sagas(engine, wanted, limit=limit, codec=codec)).items
                if dry_run or not sagas:
                    return OperationReport(operation=None, sagas=sagas)
                with explained():
                    selection = "by ID" if wanted is None else str(wanted)
                    request, operation_id = _request(action, sagas, selection, actor=actor_name, key=key, reason=reason)
                await client.call(start_operation, request, key=operation_id)
                operation = await _until_ended(client, operation_id)
                return OperationReport(operation=operation, sagas=await _settled(engine, action, sagas))

        report = asyncio.run(act())
        if as_json:
            console.print_model(report)
        else:
            _print(action, report)
        if report.operation is not None and report.operation.refused == report.operation.total:
            raise typer.Exit(1)

    command.__doc__ = _HELP[action]
    app.command(action.value)(command)


def _request(
    action: SagaAction, sagas: Sequence[SagaRow], selection: str, *, actor: str, key: ActorKey | None, reason: str
) -> tuple[SagaOperationRequest, str]:
    """Return the request and the ID of a new operation."""
    operation_id = secrets.token_hex(8)
    targets = [SagaTarget.of(saga) for saga in sagas]
    signed_action = None
    if key is not None:
        now = datetime.now(UTC)
        signed_action = sign_operation(key, operation_id, action, targets, reason=reason, selection=selection, at=now)
    request = SagaOperationRequest(
        action=action, actor=actor, reason=reason, selection=selection, sagas=targets, signed_action=signed_action
    )
    return request, operation_id


async def _until_ended(client: IngressClient, operation_id: str) -> SagaOperation:
    delay = _POLL
    while True:
        operation = await client.call(operation_status, key=operation_id)
        if operation.has_ended:
            return operation
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_POLL)  # the status of a large operation is large


async def _settled(engine: AdminClient, action: SagaAction, before: Sequence[SagaRow]) -> list[SagaRow]:
    """Return the sagas after the action, once they have left the phases that it ends, or after some seconds."""
    known = {saga.id: saga for saga in before}
    end = asyncio.get_running_loop().time() + _SETTLE.total_seconds()
    while True:
        after = await sagas_by_id(engine, list(known))
        if action in (SagaAction.CANCEL, SagaAction.KILL):  # the engine deletes a saga that was not due to start yet
            gone = known.keys() - after.keys()
            after |= {id_: known[id_].model_copy(update={"phase": SagaPhase.CANCELLED}) for id_ in gone}
        is_settled = all(id_ in after and _has_changed(action, known[id_], after[id_]) for id_ in known)
        if is_settled or asyncio.get_running_loop().time() > end:
            return [after.get(id_, saga) for id_, saga in known.items()]
        await asyncio.sleep(_POLL)


def _has_changed(action: SagaAction, before: SagaRow, after: SagaRow) -> bool:
    if action is SagaAction.RESUME:
        return after.phase is not SagaPhase.PAUSED
    if action is SagaAction.RESTART:
        return after.started_at != before.started_at or before.phase not in action.phases
    return after.phase not in (SagaPhase.RUNNING, SagaPhase.PAUSED)


def _print(action: SagaAction, report: OperationReport) -> None:
    operation = report.operation
    if not report.sagas:
        console.say("No matching sagas.")
        return
    if operation is None:
        _print_sagas(report.sagas, {})
        console.say(f"{len(report.sagas)} match. To {action} them, run the command without --dry-run.")
        return
    outcomes = {each.saga: each.message for each in operation.outcomes}
    _print_sagas(report.sagas, outcomes)
    phases = Counter(saga.phase.value for saga in report.sagas)
    now = ", ".join(f"{number} {phase}" for phase, number in phases.most_common())
    console.say(f"{action}: {operation.done - operation.refused} accepted, {operation.refused} refused. Now: {now}.")
    refused = [each for each in operation.outcomes if not each.accepted][:_MAX_PRINTED]
    for each in refused if len(report.sagas) > _MAX_PRINTED else []:
        console.say(f"{each.saga}: {each.message}")
    console.say(f"Operation {operation.id}, in the audit log: perdure sagas audit")


def _print_sagas(sagas: Sequence[SagaRow], outcomes: dict[str, str]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("saga", "service", "phase", *(("result",) if outcomes else ())):
        table.add_column(column, overflow="fold")
    for saga in sagas[:_MAX_PRINTED]:
        outcome = outcomes.get(f"{saga.service}/{saga.key}", "")
        table.add_row(saga.key, saga.service, saga.phase, *((outcome,) if outcomes else ()))
    console.print(table)
    if len(sagas) > _MAX_PRINTED:
        console.say(f"{len(sagas) - _MAX_PRINTED} more")


def _audit(
    saga_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only operations on this saga.")] = None,
    *,
    as_json: JsonOption = False,
    admin: AdminOption = DEFAULT_ADMIN,
) -> None:
    """Show who acted on sagas, when and why, newest first."""
    codec = codec_from_environment()
    service, _, key = (saga_id or "").rpartition(":")
    log = AuditLog(
        items=query_engine(
            admin,
            lambda engine: read_audit_log(engine, codec, service=service or None, key=key or None),
        )
    )
    if as_json:
        console.print_model(log)
        return
    if not log.items:
        console.say("No operations.")
    for entry in log.items:
        signed = "unsigned" if entry.signed_action is None else "signed"
        progress = "" if entry.has_ended else f", {entry.done} done"
        refused = f", {entry.refused} refused" if entry.refused else ""
        console.say(
            f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.actor} ({signed})  {entry.action} {entry.total} "
            f"({entry.selection}{progress}{refused})  {entry.reason}"
        )
        for outcome in entry.outcomes:
            console.say(f"  {outcome.saga}: {outcome.message}")
