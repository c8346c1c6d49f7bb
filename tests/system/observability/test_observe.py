"""The command `observe`."""

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
def test_prints_traces_and_all_panel_values(monkeypatch, capsys, tmp_path, pytestconfig):
    engine = locate_engine(pytestconfig.rootpath / ".local" / "engine")
    monkeypatch.setenv("RESTATE_SERVER_BIN", str(engine.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(module, "SCENARIOS", SCENARIOS[:2])  # `make demo` plays all of them
    assert observe(PlatformSettings(), Terminal()) == 0
    out = capsys.readouterr().out
    (booked,) = re.findall(r"The trace of \S+, which was booked\n(.*?)\n\n", out, re.DOTALL)
    for part in ("[engine]", "[orchestrator]", "[flights]", "[hotels]", "[payments]", "step flight", "INSERT"):
        assert part in booked, out
    assert re.search(r"The trace of \S+, which was partly rolled back\n.*Linked to it", out, re.DOTALL), out
    panels = out[out.index("Dashboard values") :]
    for query in panel_queries():
        assert query.dashboard in panels
        assert re.search(rf"^  {re.escape(query.panel)}\n    +(no data|nan|[-+\d,.inf]+)", panels, re.MULTILINE), query
    assert re.search(r"^    +[\d,.]*[1-9][\d,.]*  .*Trips", panels, re.MULTILINE), panels
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == [], "its data is removed"
