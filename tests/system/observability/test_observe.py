"""`observe` prints a trace of a trip, service by service, and the value of every panel."""

from __future__ import annotations

import re

import pytest

from perdure.dev.terminal import Terminal
from perdure.engine import locate_engine
from services.runtime.settings import PlatformSettings
from tests.e2e.launched import processes_of
from tests.system.observability import observe as module
from tests.system.observability.observe import observe
from tests.system.observability.panels import panel_queries
from tests.system.scenarios.scenarios import SCENARIOS


@pytest.mark.timeout(180)
def test_shows_the_trace_of_a_trip_and_the_value_of_every_panel(monkeypatch, capsys, tmp_path, pytestconfig):
    engine = locate_engine(pytestconfig.rootpath / ".local" / "engine")
    monkeypatch.setenv("RESTATE_SERVER_BIN", str(engine.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(module, "SCENARIOS", SCENARIOS[:2])  # all of them are `make demo`'s
    assert observe(PlatformSettings(), Terminal()) == 0
    out = capsys.readouterr().out
    (booked,) = re.findall(r"The trace of \S+, which was booked\n(.*?)\n\n", out, re.DOTALL)
    for part in ("[engine]", "[orchestrator]", "[flights]", "[hotels]", "[payments]", "step flight", "INSERT"):
        assert part in booked, out
    assert re.search(r"The trace of \S+, which was undone, as far as it went\n.*linked to it", out, re.DOTALL), out
    panels = out[out.index("What the dashboards show") :]
    for query in panel_queries():
        assert query.dashboard in panels
        assert re.search(rf"^  {re.escape(query.panel)}\n    +(no data|nan|[-+\d,.inf]+)", panels, re.MULTILINE), query
    assert re.search(r"^    +[\d,.]*[1-9][\d,.]*  .*Trips", panels, re.MULTILINE), panels
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == [], "its data is of no use afterwards"
