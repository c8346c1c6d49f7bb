"""How large a workflow's state is, and whether it may be."""

from __future__ import annotations

from typing import Final

from restate.serde import BytesSerde

from perdure.errors import StateTooLarge
from perdure.observability.logging import get_logger
from perdure._runtime.run_scope import refuse_inside_run
from perdure.state import StateContext
from perdure.workflow_config import WorkflowConfig

WARN_AT: Final = 0.8

log = get_logger("perdure.workflow")


async def monitor_state_size(ctx: StateContext, config: WorkflowConfig) -> int:
    """Measure the state of this workflow or virtual object, and refuse one that is too large.

    What is measured is what the engine stores: names and values, in bytes. Each value that is read becomes an entry of
    the journal, so measure from a shared handler, or rarely.

    Args:
        ctx: The context of a handler of the workflow, main or shared.
        config: Says how large it may be.

    Returns:
        The size in bytes.

    Raises:
        StateTooLarge: It is larger than ``max_state_size``; terminal, 413. From 80 % on, there is a warning in the log.
    """
    refuse_inside_run("monitor_state_size")
    size = 0
    largest, most = "", -1
    for name in sorted(await ctx.state_keys()):
        value = await ctx.get(name, serde=BytesSerde()) or b""
        taken = len(name.encode()) + len(value)
        size += taken
        if taken > most:
            largest, most = name, taken
    limit = config.max_state_size
    if limit and size > limit:
        raise StateTooLarge(
            f"workflow state size ({size} bytes) exceeds configured maximum ({limit} bytes); the largest entry is "
            f"'{largest}' with {most} bytes",
            metadata={"size": str(size), "maximum": str(limit), "largest": largest},
        )
    if limit and size > WARN_AT * limit:
        log.warning("workflow.state_size", size=size, maximum=limit, largest=largest, share=round(size / limit, 2))
    return size
