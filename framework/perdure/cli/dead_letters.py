"""`perdure dead-letters`: list what could not be undone, and decide about it."""

from __future__ import annotations

import json
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
    actor_option,
    ask,
    print_json,
    read_payload,
)
from perdure.errors import ConfigurationError
from perdure.saga.messages import (
    ActionReceipt,
    BulkActionReceipt,
    BulkActionRequest,
    DeadLetter,
    DeadLetterActionRequest,
    DeadLetterFilter,
    DeadLetterListRequest,
    DeadLetterPage,
    RollbackStatus,
    rollback_status,
)
from perdure.saga.schema import OperatorAction
from perdure.saga.signatures import sign_action
from perdure.targets import Target
from perdure.terminal import console, several_lines

app = typer.Typer(help="Steps that could not be undone: list them, look at them, decide.", no_args_is_help=True)

_list: Target[DeadLetterListRequest, DeadLetterPage] = Target(
    "DeadLetters", "list", DeadLetterListRequest, DeadLetterPage
)
_many: Target[BulkActionRequest, BulkActionReceipt] = Target(
    "DeadLetters", "act_on_many", BulkActionRequest, BulkActionReceipt
)

IdArgument = Annotated[str | None, typer.Argument(help="The dead letter, as `list` shows it; or use --signature.")]
SignatureOption = Annotated[
    str | None, typer.Option("--signature", help="Instead of one: all whose error has this signature.")
]


@app.command("list")
def list_(
    *,
    saga: Annotated[str | None, typer.Option(help="Of this saga only.")] = None,
    service: Annotated[str | None, typer.Option(help="Of this service's sagas only.")] = None,
    step: Annotated[str | None, typer.Option(help="With this step's name only.")] = None,
    signature: Annotated[str | None, typer.Option(help="With this error signature only.")] = None,
    page: Annotated[int, typer.Option(min=1)] = 1,
    page_size: Annotated[int, typer.Option(min=1, max=500)] = 50,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """List dead letters, oldest first, and the groups of equal failures."""
    request = DeadLetterListRequest(
        saga_id=saga, service=service, step=step, signature=signature, page=page, page_size=page_size
    )
    found = ask(ingress, lambda client: client.call(_list, request))
    if as_json:
        print_json(found)
        return
    if not found.items:
        console.say("no dead letters")
        return
    table = Table("id", "step", "since", "tries", "error")
    for letter in found.items:
        tries = f"{letter.attempts}" + (f" (redriven {letter.redriven}x)" if letter.redriven else "")
        table.add_row(letter.id, letter.step, f"{letter.since:%Y-%m-%d %H:%M:%S}", tries, letter.error)
    console.print(table)
    for group in found.groups:
        console.say(f"{group.count} x {group.signature}")
    console.say(f"{found.total} in all, page {found.page} of {found.pages}")


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The dead letter.")],
    *,
    as_json: JsonOption = False,
    ingress: IngressOption = DEFAULT_INGRESS,
) -> None:
    """Show one dead letter: its payload, its error, and what was done about it so far."""
    letter = _find(ingress, letter_id)
    rollback = ask(ingress, lambda client: client.call(rollback_status, key=letter.saga_id))
    if as_json:
        print_json(letter)
        return
    _print_letter(letter, rollback)


def _find(ingress: str, letter_id: str) -> DeadLetter:
    request = DeadLetterListRequest(saga_id=letter_id.rpartition("/")[0], page_size=500)
    found = ask(ingress, lambda client: client.call(_list, request))
    for letter in found.items:
        if letter.id == letter_id:
            return letter
    raise ConfigurationError(f"there is no dead letter '{letter_id}'; `perdure dead-letters list` shows all")


def _print_letter(letter: DeadLetter, rollback: RollbackStatus) -> None:
    facts = Table(show_header=False, box=None)
    shown: dict[str, str | Text] = {
        "id": letter.id,
        "saga": f"{letter.saga_id} of {letter.service}, rolled back because: {letter.reason}",
        "step": letter.step,
        "compensation": letter.compensation or "none",
        "error": letter.error,
        "attempts": f"{letter.attempts}, redriven {letter.redriven} times before",
        "since": f"{letter.since:%Y-%m-%d %H:%M:%S %Z}",
        "payload": several_lines(json.dumps(letter.payload, indent=2, ensure_ascii=False)),
    }
    for name, value in shown.items():
        facts.add_row(name, value)
    console.print(facts)
    for entry in rollback.audit_log_of(letter.position):
        proof = "unsigned" if entry.proof is None else "signed"
        console.say(f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.actor}  {entry.act}  {entry.reason}  ({proof})")
    console.say(
        f"perdure dead-letters redrive {letter.id} tries again; resolve, skip and discard end it otherwise",
    )


def _act(act: OperatorAction) -> None:
    """Add the command for one act."""
    texts = {
        OperatorAction.REDRIVE: "Repeat the compensation with a full set of attempts; --payload replaces its payload.",
        OperatorAction.SKIP: "Leave the step as it is, and let the rollback go on.",
        OperatorAction.RESOLVE: "Say that the step was undone by hand.",
        OperatorAction.DISCARD: "Close the step without its being undone.",
        OperatorAction.ANNOTATE: "Only write into the audit log.",
    }

    def command(
        letter_id: IdArgument = None,
        *,
        actor: ActorOption = None,
        key_file: KeyFileOption = None,
        reason: ReasonOption = "",
        signature: SignatureOption = None,
        payload: Annotated[str | None, typer.Option(help="With redrive: the new payload, as JSON or @FILE.")] = None,
        ingress: IngressOption = DEFAULT_INGRESS,
    ) -> None:
        if (letter_id is None) == (signature is None):
            raise ConfigurationError("name one dead letter, or a --signature, and not both")
        who, key = actor_option(actor, key_file)
        if letter_id is not None:
            new_payload = read_payload(payload)
            proof = None
            if key is not None:
                letter, now = _find(ingress, letter_id), datetime.now(UTC)
                proof = sign_action(key, act, letter, reason=reason, payload=new_payload, at=now)
            request = DeadLetterActionRequest(id=letter_id, actor=who, reason=reason, payload=new_payload, proof=proof)
            target: Target[DeadLetterActionRequest, ActionReceipt] = Target(
                "DeadLetters", act.value, DeadLetterActionRequest, ActionReceipt
            )
            receipt = ask(ingress, lambda client: client.call(target, request))
            console.say(f"{receipt.id}: {receipt.act} by {who}, now {receipt.state}")
            return
        wanted = DeadLetterListRequest(signature=signature, page_size=500)
        letters = [] if key is None else ask(ingress, lambda client: client.call(_list, wanted)).items
        many = BulkActionRequest(
            act=act,
            actor=who,
            reason=reason,
            filter=DeadLetterFilter(signature=signature),
            proofs={
                letter.id: sign_action(key, act, letter, reason=reason, at=datetime.now(UTC))
                for letter in letters
                if key
            },
        )
        done = ask(ingress, lambda client: client.call(_many, many))
        console.say(f"{act}: {len(done.done)} done, {len(done.refused)} refused")
        for each, why in done.refused.items():
            console.say(f"{each}: {why}")

    command.__doc__ = texts[act]
    app.command(act.value)(command)


for _each in OperatorAction:
    _act(_each)
