"""`perdure dead-letters`: list dead letters and act on them."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from typing import Annotated, Final

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
    print_answer,
    print_facts,
    read_payload,
    resolve_actor,
)
from perdure.engine.ingress import IngressClient
from perdure.errors import ConfigurationError, IngressError, NotFound
from perdure.saga.dead_letter_batches import act_on_batch, list_dead_letters, next_batch
from perdure.saga.messages import (
    MAX_PAGE,
    ActionReceipt,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetter,
    DeadLetterActionRequest,
    DeadLetterFilter,
    DeadLetterListRequest,
    RollbackStatus,
    letter_of,
    rollback_status,
)
from perdure.saga.schema import OperatorAction
from perdure.saga.signatures import sign_action
from perdure.security.signed_actions import ActorKey
from perdure.targets import Target
from perdure.terminal import console, multiline_text

app = typer.Typer(no_args_is_help=True)

IdArgument = Annotated[str | None, typer.Argument(help="The dead letter, as shown by `list`; or use --signature.")]
SignatureOption = Annotated[
    str | None, typer.Option("--signature", help="Act on all dead letters with this error signature.")
]
ServiceOption = Annotated[str | None, typer.Option("--service", help="With --signature: only sagas of this service.")]

_MAX_REFUSALS: Final = 20


@app.command("list")
def list_(
    *,
    saga: Annotated[str | None, typer.Option(help="Filter by saga ID.")] = None,
    service: Annotated[str | None, typer.Option(help="Filter by the service of the saga.")] = None,
    step: Annotated[str | None, typer.Option(help="Filter by step name.")] = None,
    signature: Annotated[str | None, typer.Option(help="Filter by error signature.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE, help="Number of dead letters.")] = 50,
    after: Annotated[str | None, typer.Option(help="Cursor that the previous page printed.")] = None,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """List dead letters, oldest first, and their number per error signature."""
    request = DeadLetterListRequest(
        saga_id=saga, service=service, step=step, signature=signature, page_size=limit, after=after
    )
    letters = call_ingress(ingress, lambda client: client.call(list_dead_letters, request))
    if as_json:
        console.print_model(letters)
        return
    if not letters.total:
        console.say("No dead letters.")
        return
    table = Table("id", "step", "since", "attempts", "error")
    for letter in letters.items:
        attempts = f"{letter.attempts}" + (f" (redriven {letter.redriven}x)" if letter.redriven else "")
        table.add_row(letter.id, letter.step, f"{letter.since:%Y-%m-%d %H:%M:%S}", attempts, letter.error)
    for unreadable in letters.unreadable:
        table.add_row(unreadable.id, "?", f"{unreadable.since:%Y-%m-%d %H:%M:%S}", "?", unreadable.error)
    console.print(table)
    for group in letters.groups:
        console.say(f"{group.count} x {group.signature}")
    if letters.group_count > len(letters.groups):
        console.say(f"{letters.group_count - len(letters.groups)} more error signatures")
    console.say(f"{letters.total} dead letters")
    if letters.next is not None:
        console.say(f"More: add --after {shlex.quote(letters.next)}")


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The dead letter.")],
    *,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Show the payload, error and audit log of a dead letter."""
    letter = _find(ingress, letter_id)
    rollback = call_ingress(ingress, lambda client: client.call(rollback_status, key=letter.saga_id))
    if as_json:
        console.print_model(letter)
        return
    _print_letter(letter, rollback)


def _find(ingress: str, letter_id: str) -> DeadLetter:
    saga_id = letter_id.rpartition("/")[0]
    page = call_ingress(ingress, lambda client: client.call(list_dead_letters, DeadLetterListRequest(id=letter_id)))
    for letter in page.items:
        return letter
    for unreadable in page.unreadable:
        raise ConfigurationError(f"dead letter '{letter_id}': {unreadable.error}")
    try:
        rollback = call_ingress(ingress, lambda client: client.call(rollback_status, key=saga_id))
    except IngressError as error:
        if error.code != NotFound.code:
            raise
    else:
        if (waiting := letter_of(rollback, letter_id)) is not None:
            return waiting
    raise ConfigurationError(f"dead letter '{letter_id}' does not exist; `perdure dead-letters list` lists all")


def _print_letter(letter: DeadLetter, rollback: RollbackStatus) -> None:
    facts: dict[str, str | Text] = {
        "id": letter.id,
        "saga": f"{letter.saga_id} of {letter.service}, rolled back: {letter.reason}",
        "step": letter.step,
        "compensation": letter.compensation or "none",
        "error": letter.error,
        "attempts": f"{letter.attempts}, redriven {letter.redriven} times",
        "since": f"{letter.since:%Y-%m-%d %H:%M:%S %Z}",
        "payload": multiline_text(json.dumps(letter.payload, indent=2, ensure_ascii=False)),
    }
    print_facts(facts)
    for entry in rollback.audit_log_of(letter.id):
        signed = "unsigned" if entry.signed_action is None else "signed"
        console.say(f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.actor}  {entry.action}  {entry.reason}  ({signed})")
    console.say(f"To retry: perdure dead-letters redrive {letter.id} (to close it: resolve, skip or discard)")


async def _act_on_group(
    client: IngressClient, request: BulkActionRequest, key: ActorKey | None, *, as_json: bool
) -> None:
    """Act on all dead letters that match now, in batches, and print the progress and the first refusals."""
    total = BulkActionReceipt(done=[], refused={})
    batch: BulkActionRequest | None = request
    while batch is not None:
        receipt = await act_on_batch(client, batch, key)
        total.done.extend(receipt.done)
        total.refused.update(receipt.refused)
        total.remaining = receipt.remaining
        batch = next_batch(request, receipt)
        if batch is not None and not as_json:
            console.say(f"{len(total.done)} succeeded, {len(total.refused)} refused, {receipt.remaining} remaining")
    refusals = [f"{letter_id}: {message}" for letter_id, message in list(total.refused.items())[:_MAX_REFUSALS]]
    if len(total.refused) > _MAX_REFUSALS:
        more = len(total.refused) - _MAX_REFUSALS
        refusals.append(f"{more} more refused; `perdure dead-letters list` shows them")
    result = f"{request.action}: {len(total.done)} succeeded, {len(total.refused)} refused"
    print_answer(total, as_json, *refusals, result)


_HELP = {
    OperatorAction.REDRIVE: "Retry the compensation with all its attempts, optionally with another --payload.",
    OperatorAction.SKIP: "Skip the compensation of the step and continue the rollback.",
    OperatorAction.RESOLVE: "Record that the step was compensated manually.",
    OperatorAction.DISCARD: "Close the dead letter without a compensation.",
    OperatorAction.ANNOTATE: "Add a note to the audit log.",
}


def _add_command(action: OperatorAction) -> None:
    """Add the command for one operator action."""

    def command(
        letter_id: IdArgument = None,
        *,
        actor: ActorOption = None,
        key_file: KeyFileOption = None,
        reason: ReasonOption = "",
        signature: SignatureOption = None,
        service: ServiceOption = None,
        payload: Annotated[str | None, typer.Option(help="With redrive: the new payload, as JSON or @FILE.")] = None,
        wait: Annotated[bool, typer.Option("--wait", help="With redrive: wait for the outcome.")] = False,
        as_json: JsonOption = False,
        ingress: IngressOption = DEFAULT_INGRESS,
    ) -> None:
        if (letter_id is None) == (signature is None):
            raise UsageError("pass either the ID of a dead letter or --signature")
        if signature is not None and (payload is not None or wait):
            raise UsageError("--payload and --wait apply to one dead letter; pass its ID, not --signature")
        if service is not None and signature is None:
            raise UsageError("--service restricts --signature; an ID names one dead letter")
        actor_name, key = resolve_actor(actor, key_file)
        if letter_id is not None:
            new_payload = read_payload(payload)
            signed_action = None
            if key is not None:
                letter, now = _find(ingress, letter_id), datetime.now(UTC)
                signed_action = sign_action(key, action, letter, reason=reason, payload=new_payload, at=now)
            one = DeadLetterActionRequest(
                id=letter_id,
                actor=actor_name,
                reason=reason,
                payload=new_payload,
                signed_action=signed_action,
                wait=wait,
            )
            target = Target("DeadLetters", action.value, DeadLetterActionRequest, ActionReceipt)
            receipt = call_ingress(ingress, lambda client: client.call(target, one))
            print_answer(receipt, as_json, f"{receipt.id}: {receipt.action} recorded. State: {receipt.state}.")
            return
        wanted = DeadLetterFilter(signature=signature, service=service)
        request = BulkActionRequest(action=action, actor=actor_name, reason=reason, filter=wanted)
        call_ingress(ingress, lambda client: _act_on_group(client, request, key, as_json=as_json))

    command.__doc__ = _HELP[action]
    app.command(action.value)(command)


for _act in OperatorAction:
    _add_command(_act)
