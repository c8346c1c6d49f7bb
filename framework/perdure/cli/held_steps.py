"""`perdure held-steps`: list the steps that wait for an operator after a failure, and act on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from perdure.cli.options import (
    DEFAULT_INGRESS,
    ActorOption,
    IngressOption,
    JsonOption,
    KeyFileOption,
    ReasonOption,
    UsageError,
    call_ingress,
    print_facts,
    read_payload,
    resolve_actor,
)
from perdure.saga.held_step_messages import (
    MAX_PAGE,
    HeldStepAction,
    HeldStepActionRequest,
    HeldStepBulkReceipt,
    HeldStepBulkRequest,
    HeldStepDetail,
    HeldStepFilter,
    HeldStepListRequest,
    HeldStepPage,
    act_on_held_steps,
    held_step_action,
    list_held_steps,
    show_held_step,
)
from perdure.saga.held_step_signatures import sign_held_step_action
from perdure.security.signed_actions import ActorKey, SignedAction
from perdure.terminal import console, multiline_text

app = typer.Typer(no_args_is_help=True)

SagaOption = Annotated[str | None, typer.Option("--saga", help="Filter by saga ID.")]
ServiceOption = Annotated[str | None, typer.Option("--service", help="Filter by the service of the saga.")]
StepOption = Annotated[str | None, typer.Option("--step", help="Filter by step name.")]
SignatureOption = Annotated[str | None, typer.Option("--signature", help="Filter by error signature.")]
IdArgument = Annotated[str | None, typer.Argument(metavar="ID", help="The held step; or use --all with a filter.")]


@app.command("list")
def list_(
    *,
    saga: SagaOption = None,
    service: ServiceOption = None,
    step: StepOption = None,
    signature: SignatureOption = None,
    after: Annotated[str | None, typer.Option(help="Continue after this cursor, the `next` of a page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="Maximum number of held steps.")] = 50,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """List held steps, oldest first, and their number per error signature."""
    wanted = HeldStepFilter(saga_id=saga, service=service, step=step, signature=signature)
    page = _page(ingress, wanted, after, limit)
    if as_json:
        console.print_model(page)
        return
    if not page.items:
        console.say("No held steps.")
        return
    table = Table("id", "step", "since", "until", "error")
    for held in page.items:
        table.add_row(held.id, held.step, _time(held.since), _time(held.until), held.error)
    console.print(table)
    for group in page.groups:
        console.say(f"{group.count} x {group.signature}")
    console.say(f"{page.total} held steps")
    if page.next is not None:
        console.say(f"More: --after '{page.next}'")


@app.command()
def show(
    held_step_id: Annotated[str, typer.Argument(metavar="ID", help="The held step.")],
    *,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Show the request, error, deadline and audit log of a held step."""
    detail = _detail(ingress, held_step_id)
    if as_json:
        console.print_model(detail)
        return
    held = detail.step
    facts: dict[str, str | Text] = {
        "id": held.id,
        "saga": f"{held.saga_id} of {held.service}",
        "step": held.step,
        "action": held.action,
        "error": held.error,
        "attempts": f"{held.attempts}, held {held.held} times",
        "since": _time(held.since),
        "until": _time(held.until),
        "payload": multiline_text(json.dumps(held.payload, indent=2, ensure_ascii=False)),
    }
    print_facts(facts)
    for entry in detail.audit_log:
        signed = "unsigned" if entry.signed_action is None else "signed"
        console.say(f"{_time(entry.at)}  {entry.actor}  {entry.action}  {entry.reason}  ({signed})")
    if detail.outcome is not None:
        console.say(f"Not held any longer: {detail.outcome.action}")
        return
    roll_back = "" if held.past_pivot else " (to give up: roll-back)"
    console.say(f"To retry: perdure held-steps retry {held.id}{roll_back}")


_HELP = {
    HeldStepAction.RETRY: "Repeat the step with all its attempts, optionally with another --payload.",
    HeldStepAction.COMPLETE: "Continue the saga with a --result for the step, which then counts as completed.",
    HeldStepAction.ROLL_BACK: "Fail the step now; its saga is rolled back.",
}


def _add_command(action: HeldStepAction) -> None:
    """Add the command for one operator action."""

    def command(
        held_step_id: IdArgument = None,
        *,
        everything: Annotated[bool, typer.Option("--all", help="Act on all held steps of a filter.")] = False,
        saga: SagaOption = None,
        service: ServiceOption = None,
        step: StepOption = None,
        signature: SignatureOption = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="With --all: only list the held steps.")] = False,
        actor: ActorOption = None,
        key_file: KeyFileOption = None,
        reason: ReasonOption = "",
        payload: Annotated[str | None, typer.Option(help="With retry: the new request, as JSON or @FILE.")] = None,
        result: Annotated[
            str | None, typer.Option(help="With complete: the result, as JSON or @FILE; null by default.")
        ] = None,
        as_json: JsonOption = False,
        ingress: IngressOption = DEFAULT_INGRESS,
    ) -> None:
        wanted = HeldStepFilter(saga_id=saga, service=service, step=step, signature=signature)
        is_filtered = bool(wanted.model_dump(exclude_none=True))
        if (held_step_id is None) != everything or everything != is_filtered:
            raise UsageError(
                "pass either the ID of a held step, or --all with --saga, --service, --step or --signature"
            )
        if everything and payload is not None:
            raise UsageError("--payload applies to one held step; pass its ID, not --all")
        if dry_run and not everything:
            raise UsageError("--dry-run applies to --all")
        values = {"payload": read_payload(payload), "result": read_payload(result, "--result")}
        actor_name, key = resolve_actor(actor, key_file)
        if held_step_id is None:
            bulk = HeldStepBulkRequest(
                action=action,
                actor=actor_name,
                reason=reason,
                filter=wanted,
                result=values["result"],
                dry_run=dry_run,
            )
            _act_on_all(ingress, bulk, key, as_json=as_json)
            return
        signed_action = None
        if key is not None:
            held = _detail(ingress, held_step_id).step
            signed_action = sign_held_step_action(key, action, held, reason=reason, at=datetime.now(UTC), **values)
        request = HeldStepActionRequest(
            id=held_step_id, actor=actor_name, reason=reason, signed_action=signed_action, **values
        )
        receipt = call_ingress(ingress, lambda client: client.call(held_step_action(action), request))
        if as_json:
            console.print_model(receipt)
            return
        console.say(f"{receipt.id}: {receipt.action} recorded.")

    command.__doc__ = _HELP[action]
    app.command(action.value.replace("_", "-"))(command)


for _action in HeldStepAction:
    _add_command(_action)


def _act_on_all(ingress: str, request: HeldStepBulkRequest, key: ActorKey | None, *, as_json: bool) -> None:
    """Act on all held steps of a filter, in batches."""
    total = HeldStepBulkReceipt()
    for batch in _batches(ingress, request, key):
        total.done.extend(batch.done)
        total.refused.update(batch.refused)
    if as_json:
        console.print_model(total)
    elif request.dry_run:
        for held_step_id in total.done:
            console.say(held_step_id)
        console.say(f"{request.action}: {len(total.done)} held steps match")
    else:
        console.say(f"{request.action}: {len(total.done)} succeeded, {len(total.refused)} refused")
        for refused, message in total.refused.items():
            console.say(f"{refused}: {message}")


def _batches(ingress: str, request: HeldStepBulkRequest, key: ActorKey | None) -> Iterator[HeldStepBulkReceipt]:
    while True:
        signed: dict[str, SignedAction] = {}
        if key is not None and not request.dry_run:
            for held in _page(ingress, request.filter, request.after, MAX_PAGE).items:
                signed[held.id] = sign_held_step_action(
                    key, request.action, held, reason=request.reason, result=request.result, at=datetime.now(UTC)
                )
        batch = request.model_copy(update={"signed_actions": signed})
        receipt = _send(ingress, batch)
        yield receipt
        if receipt.next is None:
            return
        request = request.model_copy(update={"after": receipt.next})


def _send(ingress: str, batch: HeldStepBulkRequest) -> HeldStepBulkReceipt:
    return call_ingress(ingress, lambda client: client.call(act_on_held_steps, batch))


def _page(ingress: str, wanted: HeldStepFilter, after: str | None, limit: int) -> HeldStepPage:
    request = HeldStepListRequest(**wanted.model_dump(), after=after, limit=limit)
    return call_ingress(ingress, lambda client: client.call(list_held_steps, request))


def _detail(ingress: str, held_step_id: str) -> HeldStepDetail:
    return call_ingress(ingress, lambda client: client.call(show_held_step, held_step_id))


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"
