from __future__ import annotations

import os
import sys

import pytest

from perdure import StatusData
from perdure.dev.terminal import Terminal, describe_status
from services.data_plane.audit import AuditReport, Finding, Invariant
from services.runtime.reports import show_audit


def test_long_lines_are_not_wrapped(capsys):
    line = "[bold]not markup[/bold] :smile: " + "x" * 500
    Terminal().say(line)
    assert capsys.readouterr().out == f"{line}\n"


def test_progress_prints_changes_without_terminal(capsys):
    at_flight = StatusData(phase="running", progress=0.2, current_step="flight", completed_steps=["order"])
    at_hotel = StatusData(phase="running", progress=0.4, current_step="hotel", completed_steps=["order", "flight"])
    with Terminal().progress() as show:
        for status in (at_flight, at_flight, at_hotel, at_hotel):
            show(status)
    assert capsys.readouterr().out == (
        "   20%  running: flight (done: order)\n   40%  running: hotel (done: order, flight)\n"
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (StatusData(phase="not_started"), "not_started"),
        (StatusData(phase="running", current_step="flight"), "running: flight"),
        (StatusData(phase="completed", completed_steps=["flight"], is_complete=True), "completed (done: flight)"),
    ],
)
def test_describe_trip_status(status, words):
    assert describe_status(status) == words


def test_closed_pipe_silences_output(capfd, monkeypatch):
    reading, writing = os.pipe()
    stdout = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    terminal = Terminal()
    terminal.say("first")
    assert os.read(reading, 100) == b"first\n"
    os.close(reading)
    terminal.say("second")
    terminal.say("third")
    stdout.close()  # would raise if the buffer still contained text


def test_audit_report_shortens_long_findings(capsys):
    findings = tuple(Finding(subject=f"trip-{number}", detail="holds a room") for number in range(23))
    report = AuditReport(
        invariants=(
            Invariant(name="ledger", promise="it sums to zero", checked=2, findings=()),
            Invariant(name="trips-refused", promise="each holds nothing", checked=40, findings=findings),
        ),
        confirmed=1,
        refused=40,
        open=0,
    )
    show_audit(report, Terminal())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "holds   ledger: it sums to zero (2 checked)"
    assert lines[1] == "BROKEN  trips-refused: each holds nothing (40 checked)"
    assert lines[2] == "          trip-0: holds a room"
    assert lines[-2] == "          and 3 more"
    assert lines[-1] == "trips: 1 confirmed, 40 refused, 0 open"
