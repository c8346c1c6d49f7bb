"""Print the report of an audit."""

from __future__ import annotations

from typing import Final

from perdure.dev.terminal import Terminal
from services.data_plane.audit import AuditReport

_FINDINGS: Final = 20


def show_audit(report: AuditReport, terminal: Terminal) -> None:
    """Print each invariant with its violations, the remarks, and the number of trips."""
    for invariant in report.invariants:
        mark, style = ("holds ", "green") if invariant.ok else ("BROKEN", "bold red")
        terminal.say(f"{mark}  {invariant.name}: {invariant.promise} ({invariant.checked} checked)", style)
        for finding in invariant.findings[:_FINDINGS]:
            terminal.say(f"          {finding.subject}: {finding.detail}", "red")
        if (more := len(invariant.findings) - _FINDINGS) > 0:
            terminal.say(f"          and {more} more", "red")
    for remark in report.remarks:
        terminal.say(f"        {remark}", "yellow")
    terminal.say(f"trips: {report.confirmed} confirmed, {report.refused} refused, {report.open} open")
