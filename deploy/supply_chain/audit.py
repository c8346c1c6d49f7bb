"""Audit of locked dependencies for known vulnerabilities.

python -m deploy.supply_chain.audit [--tolerate-silence]

pip-audit succeeds if its database has no advisories, as with an index that mirrors packages only. This command then
exits with code 2, or prints a prominent line with ``--tolerate-silence``. A vulnerability exits with code 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LOCK: Final = Path(__file__).parents[2] / "requirements.lock"

_TOLERATE: Final = "--tolerate-silence"
_SHOWN: Final = 5
_WITHIN: Final = 600.0


@dataclass(frozen=True)
class Verdict:
    """Result of an audit.

    Args:
        vulnerable: A line for each known vulnerability.
        unknown: Packages that are missing in the database.
        checked: Number of packages in the database.
    """

    vulnerable: list[str]
    unknown: list[str]
    checked: int

    def exit_code(self, *, tolerate_silence: bool) -> int:
        """Return 0 without findings, 1 for a vulnerability, 2 for packages that were not audited.

        Args:
            tolerate_silence: Accept packages that were not audited.
        """
        if self.vulnerable:
            return 1
        silent = bool(self.unknown) or not self.checked
        return 2 if silent and not tolerate_silence else 0

    def lines(self) -> list[str]:
        """Return the output."""
        lines = [f"VULNERABLE: {each}" for each in self.vulnerable]
        if not self.checked:
            lines.append(
                "NOT AUDITED: no database of vulnerabilities answered from here; nothing is known of any dependency"
            )
        elif self.unknown:
            more = "" if len(self.unknown) <= _SHOWN else f" and {len(self.unknown) - _SHOWN} more"
            lines.append(f"NOT AUDITED: {', '.join(self.unknown[:_SHOWN])}{more}: the database doesn't know them")
        if self.checked:
            known = "no known vulnerability" if not self.vulnerable else f"{len(self.vulnerable)} vulnerabilities"
            lines.append(f"audited {self.checked} dependencies: {known}")
        return lines


def judge(report: dict[str, Any]) -> Verdict:
    """Return the verdict of a report.

    Args:
        report: JSON report of pip-audit.
    """
    vulnerable, unknown, checked = [], [], 0
    for each in report["dependencies"]:
        if "skip_reason" in each:
            unknown.append(each["name"])
            continue
        checked += 1
        for found in each["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            vulnerable.append(f"{each['name']} {each['version']}: {found['id']}, fixed in {fixed}")
    return Verdict(vulnerable, unknown, checked)


def main() -> int:
    """Audit the lock; return the exit code."""
    command = [Path(sys.executable).with_name("pip-audit"), "--requirement", LOCK, "--require-hashes", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN, check=False)  # noqa: S603 - our own
    try:
        verdict = judge(json.loads(done.stdout))
    except ValueError:
        sys.stderr.write(done.stderr)
        verdict = Verdict([], [], 0)
    for line in verdict.lines():
        sys.stdout.write(f"{line}\n")
    return verdict.exit_code(tolerate_silence=_TOLERATE in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
