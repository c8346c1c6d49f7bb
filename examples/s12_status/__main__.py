"""Ask an order how far it is, before, in the middle and at the end."""

from __future__ import annotations

import sys

from examples._stage import Example, Stage
from examples.s12_status.app import orders, pay, process, progress
from perdure import StatusData


async def play(stage: Stage) -> None:
    """Play the example."""
    key = stage.key("tea")
    stage.say(f"before: {await stage.ingress.call(progress, key=key)}")

    await stage.ingress.send(process, "tea", key=key)

    async def waits_for_money() -> StatusData | None:
        status = await stage.ingress.call(progress, key=key)
        return status if status and status.phase == "paying" else None

    _say(stage, await stage.until(waits_for_money))
    await stage.ingress.call(pay, 12, key=key)
    stage.say(await stage.ingress.attach(process, key=key))
    end = await stage.ingress.call(progress, key=key)
    if end is not None:
        _say(stage, end)


def _say(stage: Stage, status: StatusData) -> None:
    stage.say(f"{status.progress:.0%}, {status.phase}, has done {', '.join(status.completed_steps)}")


example = Example("examples.s12_status", play, (orders,))

if __name__ == "__main__":
    sys.exit(example.main())
