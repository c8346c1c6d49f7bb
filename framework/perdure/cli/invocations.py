"""`perdure invocations`: resume, cancel and kill invocations."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import typer
from pydantic import BaseModel

from perdure._runtime.engine_messages import says_malformed_invocation_id
from perdure.cli.options import (
    DEFAULT_ADMIN,
    AdminOption,
    JsonOption,
    open_invocations,
    print_answer,
    query_engine,
    suggestion,
)
from perdure.engine.admin import AdminClient, sql_text
from perdure.errors import ConfigurationError, EngineError, InvocationNotFound
from perdure.saga.schema import sagas_sql
from perdure.saga.status import SagaPhase

app = typer.Typer(no_args_is_help=True)

InvocationAction = Literal["resume", "cancel", "kill"]

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The invocation ID, inv_...; `perdure doctor` shows it.")]

_MAX_CALLERS: Final = 20

_HELP: Final[dict[InvocationAction, str]] = {
    "resume": "Resume a paused or failing invocation now. Fix the cause first.",
    "cancel": "Cancel an invocation. Its handler cleans up; a saga rolls back. Its service must run.",
    "kill": "Kill an invocation. Its handler gets no notice; the reconciler rolls back its saga.",
}
_CONFIRMATIONS: Final[dict[InvocationAction, str]] = {
    "resume": "Resumed.",
    "cancel": "Cancellation requested.",
    "kill": "Killed.",
}


class InvocationReceipt(BaseModel):
    """Result of an action on an invocation.

    Args:
        id: The invocation.
        action: The action.
        target: Its target, such as ``Trips/my-trip/run``; None if the engine has removed it.
        status: Its status after the action, as the engine reports it. A cancel takes effect later.
        saga: The saga that it belongs to, as ``service/key``: its own, or that of the calling orchestration.
        saga_phase: Phase of the saga after the action.
    """

    id: str
    action: InvocationAction
    target: str | None = None
    status: str = "ended"
    saga: str | None = None
    saga_phase: SagaPhase | None = None


def _add_command(action: InvocationAction) -> None:
    """Add the command for one action."""

    def command(invocation_id: IdArgument, *, as_json: JsonOption = False, admin: AdminOption = DEFAULT_ADMIN) -> None:
        try:
            done = query_engine(admin, lambda engine: _perform(engine, invocation_id, action))
        except EngineError as error:
            if not isinstance(error, InvocationNotFound) and not says_malformed_invocation_id(str(error)):
                raise
            problem = f"invocation '{invocation_id}' does not exist or has ended"
            similar = suggestion(invocation_id, open_invocations())
            raise ConfigurationError(f"{problem}; `perdure doctor` shows stuck invocations{similar}") from error
        saga = f" Saga {done.saga}: {done.saga_phase}." if done.saga else ""
        target = f"{done.target} " if done.target else ""
        print_answer(done, as_json, f"{target}{done.id}: {_CONFIRMATIONS[action]} Status: {done.status}.{saga}")

    command.__doc__ = _HELP[action]
    app.command(action)(command)


async def _perform(engine: AdminClient, invocation_id: str, action: InvocationAction) -> InvocationReceipt:
    found = await _callers(engine, invocation_id)  # before a kill, which may remove it
    await engine.control_invocation(invocation_id, action)
    receipt = InvocationReceipt(id=invocation_id, action=action)
    if not found:
        return receipt
    status = f"select status from sys_invocation where id = {sql_text(invocation_id)}"  # noqa: S608 - quoted
    now = await engine.query(status)
    receipt.target = found[0]["target"]
    receipt.status = now[0]["status"] if now else receipt.status
    ids = ", ".join(sql_text(row["id"]) for row in found)
    query = f"{sagas_sql(f'i.id in ({ids})')} select id, service, key, phase from sagas"  # noqa: S608 - quoted
    rows = await engine.query(query)
    sagas = {row["id"]: row for row in rows}
    if saga := next((sagas[row["id"]] for row in found if row["id"] in sagas), None):
        receipt.saga, receipt.saga_phase = f"{saga['service']}/{saga['key']}", SagaPhase(saga["phase"])
    return receipt


async def _callers(engine: AdminClient, invocation_id: str) -> list[dict[str, Any]]:
    """Return an invocation and its callers, the innermost first."""
    found: list[dict[str, Any]] = []
    following: str | None = invocation_id
    while following and len(found) < _MAX_CALLERS:
        columns = "id, target, invoked_by_id"
        rows = await engine.query(
            f"select {columns} from sys_invocation_status where id = {sql_text(following)}"  # noqa: S608 - quoted
        )
        found += rows
        following = rows[0].get("invoked_by_id") if rows else None
    return found


for _action in _HELP:
    _add_command(_action)
