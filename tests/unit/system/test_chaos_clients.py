"""Clients of chaos runs tell an order that was certainly not accepted from an unknown outcome."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure._runtime.ports import free_ports
from tests.system.chaos.clients import Clients
from tests.system.chaos.ledger import Ledger
from tests.system.chaos.network import TcpProxy
from tests.system.chaos.plan import ORDERS


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    yield ledger
    ledger.close()


async def answer_at(port: int, ledger: Ledger) -> str | None:
    async with Clients.at(f"http://127.0.0.1:{port}", ledger) as clients:
        await clients.order("t", ORDERS["ordinary"], "impatient")
    sent, answered = ledger.entries
    assert (sent.event, sent.request, answered.event) == ("sent", "submit", "answered")
    return answered.answer


async def test_closed_port_accepts_nothing(ledger):
    (port,) = free_ports(1)
    assert await answer_at(port, ledger) == "not accepted"


async def test_broken_connection_leaves_outcome_unknown(ledger):
    async with TcpProxy.to(1) as proxy:
        assert await answer_at(proxy.port, ledger) == "unknown"
