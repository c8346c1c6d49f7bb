"""Examples: output as in the README, on a real engine; complete overview table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples import __main__ as all_of_them
from examples import _session
from examples._session import FOLDER, Example, all_examples

ROOT = FOLDER.parent
EXAMPLES = all_examples()
# Sections of the seed, in order.
SECTIONS = [
    "Wrap Non-Deterministic Operations in `restate.Run`",
    "Use Context Logger",
    "Generate Deterministic IDs and Time",
    "Parallelize Tasks Safely (Fan-Out/Fan-In)",
    "Implement Timeouts and Racing",
    "Manage State in Virtual Objects/Workflows",
    "Use Awakeables vs. Durable Promises",
    "Throw Terminal Errors",
    "Implement Sagas (Distributed Compensation)",
    "Workflow with Durable Promises (Signal Pattern)",
    "Durable Timers and Loops",
    "Workflow Status Tracking",
    "Virtual Object State Management",
    "Idempotency Keys",
    "Human-in-the-Loop with Timeout",
    "Security and Request Validation",
]


def name_of(example: Example) -> str:
    return example.package.removeprefix("examples.")


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
async def test_example_prints_output_of_readme(example, restate):
    said: list[str] = []
    await example.play_on(restate, said.append)
    assert said == example.printed


def test_overview_links_each_example():
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \| \[(.+?)\]\((.+?)\) \|", table, flags=re.MULTILINE)
    assert [(int(number), title) for number, title, _, _ in rows] == list(enumerate(SECTIONS, start=1))
    assert [folder for _, _, folder, _ in rows] == [name_of(example) for example in EXAMPLES]
    assert all(link == folder for _, _, folder, link in rows)


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_readme_has_command_and_valid_links(example):
    folder = FOLDER / name_of(example)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    number = int(name_of(example)[1:3])
    assert readme.startswith(f"# {number}. ")
    assert f"python -m {example.package}\n" in readme
    assert example.printed, "the README lacks the output"
    for link in re.findall(r"\]\(([^)]+)\)", readme):
        assert (folder / link).exists(), link


def test_example_runs_alone(restate_servers):
    """Run an example with its own engine."""
    run = subprocess.run(
        [sys.executable, "-m", "examples.s06_state"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    example = next(each for each in EXAMPLES if name_of(each) == "s06_state")
    assert run.stdout.splitlines() == example.printed


def test_different_output_fails(monkeypatch, capsys):
    """One of two examples prints another output than its README."""
    first = next(each for each in EXAMPLES if name_of(each) == "s06_state")

    async def wrong(session: _session.Session) -> None:
        session.print("something else")

    different = Example("examples.s13_account", wrong, first.services)
    monkeypatch.setattr(all_of_them, "all_examples", lambda: [first, different])
    monkeypatch.setattr(all_of_them, "silence_logs", lambda: None)
    assert all_of_them.main() == 1
    printed = capsys.readouterr()
    assert re.search(r"^ok +\d+\.\d s  6\. Manage state", printed.out, flags=re.MULTILINE)
    assert re.search(r"^failed +\d+\.\d s  13\. Manage a", printed.out, flags=re.MULTILINE)
    assert printed.out.endswith("1 of 2 examples match their README\n")
    assert "+ something else" in printed.err


def test_examples_contain_no_local_paths():
    for file in Path(FOLDER).rglob("*.*"):
        if file.suffix in (".py", ".md"):
            assert str(ROOT) not in file.read_text(encoding="utf-8"), file
