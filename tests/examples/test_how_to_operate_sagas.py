"""The code and the commands of docs/how-to/operate-sagas.md behave as documented."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perdure import IngressClient
from perdure.cli.main import app
from perdure.saga import hosting
from tests.support import eventually

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "operate-sagas.md").read_text(encoding="utf-8")
((FILE, CODE),) = re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = re.findall(r"^perdure (sagas .*)$", TEXT, flags=re.MULTILINE)


@pytest.mark.restate_modes("http2")
async def test_commands_find_and_end_orders(restate, tmp_path, monkeypatch):
    (tmp_path / FILE).write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import orders  # noqa: PLC0415 - written above

    monkeypatch.delitem(sys.modules, "orders")
    env = await restate.serve(orders.orders, *hosting.definitions())
    for name, value in {"ADMIN_URL": env.admin, "INGRESS_URL": env.ingress, "ACTOR": "ada"}.items():
        monkeypatch.setenv(f"PERDURE_{name}", value)

    async def run(command: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, app, shlex.split(command))
        assert result.exit_code == 0, (command, result.output, result.exception)
        return result.output

    async with IngressClient(env.ingress) as ingress:
        for key, customer in (("order-1", "42"), ("order-2", "42"), ("order-3", "43")):
            await ingress.send(orders.place, orders.Order(customer=customer, item="book"), key=key)

        async def waiting() -> bool:
            return "3 match" in await run("sagas cancel --service Orders --dry-run")

        await eventually(waiting, what="three waiting orders")
        outputs = {command: await run(command) for command in COMMANDS[:5]}
        assert "order-1" in outputs["sagas list --attribute customer=42"]
        assert "order-3" not in outputs["sagas list --attribute customer=42"]
        assert "cancel: 1 accepted, 0 refused" in outputs[COMMANDS[4]]

        async def cancelled() -> bool:
            return "order-1" in await run("sagas list --phase cancelled --attribute customer=42")

        await eventually(cancelled, what="cancelled order")
        assert "1 match" in await run(COMMANDS[5])
        assert "cancel: 1 accepted, 0 refused" in await run(COMMANDS[6])
        assert "restart: 1 accepted, 0 refused" in await run(COMMANDS[7])
        audit = await run(COMMANDS[8])
        assert "the customer called again" in audit
        assert audit.count("Orders/order-1") == 2
        assert "order-3" in await run("sagas list --attribute customer=43")
        unknown = await asyncio.to_thread(CliRunner().invoke, app, ["sagas", "show", "order-4"])
        assert "similar open sagas: order-3" in str(unknown.exception)
