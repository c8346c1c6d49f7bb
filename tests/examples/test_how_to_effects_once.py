"""The files of docs/how-to/effects-once.md behave as documented."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from perdure import IngressClient, KeyedTarget
from perdure.engine.admin import AdminClient
from perdure.errors import IngressError
from perdure.saga import hosting
from tests.examples.program import Program
from tests.support import eventually

TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "effects-once.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, flags=re.DOTALL))
run = KeyedTarget("Orders", "run", dict[str, str], int)


@pytest.mark.restate_modes("http2")
async def test_orders_survive_a_killed_shop(restate, tmp_path, monkeypatch):
    assert list(FILES) == ["stock.py", "shop.py", "orders.py"]
    env = await restate.serve(*hosting.definitions())
    monkeypatch.setenv("PERDURE_INGRESS_URL", env.ingress)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    stock, orders, shop = (Program(tmp_path, name) for name in ("stock", "orders", "shop"))
    async with AdminClient(env.admin) as admin, IngressClient(env.ingress) as ingress:
        try:
            with stock.running(), orders.running():
                for program in (stock, orders):
                    await eventually(program.ready, what="program", within=60)
                    await admin.register(program.url)
                with shop.running():
                    await _place(shop, "first", "book")
                with shop.running():  # the dispatcher sends the request if the first process did not
                    await eventually(lambda: _fulfilled(ingress, "first"), what="fulfilled order")
                    await _place(shop, "second", "pen")
                    with pytest.raises(IngressError, match="not enough of 'pen'"):
                        await eventually(lambda: _fulfilled(ingress, "second"), what="failed order")
                with closing(sqlite3.connect(tmp_path / "stock.db")) as database:
                    assert database.execute("SELECT left FROM items").fetchall() == [(9,)]
        finally:
            for program in (stock, orders, shop):
                program.dismiss()
            for deployment in await admin.deployments():
                if str(deployment["uri"]).rstrip("/") in (stock.url, orders.url):
                    await admin.remove_deployment(deployment["id"])


async def _place(shop: Program, order: str, item: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:

        async def placed() -> bool:
            try:
                response = await http.post(f"{shop.url}/orders", json={"id": order, "item": item})
            except httpx.TransportError:
                return False
            assert response.status_code == 202, response.text
            return True

        await eventually(placed, what="web server", within=60)


async def _fulfilled(ingress: IngressClient, order: str) -> int | None:
    try:
        return await ingress.output(run, key=order)
    except IngressError as error:
        if error.status_code in (404, 470):  # not sent or not ended yet
            return None
        raise
