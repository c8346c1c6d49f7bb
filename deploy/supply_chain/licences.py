"""Writes docs/reference/third-party-licences.md from the metadata of the locked packages.

python -m deploy.supply_chain.licences [--check]

With ``--check`` it writes nothing, and fails if the page is out of date.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageMetadata, metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

_ROOT: Final = Path(__file__).parents[2]
_LOCK: Final = _ROOT / "deploy" / "docker" / "runtime.lock"
_PAGE: Final = _ROOT / "docs" / "reference" / "third-party-licences.md"
_LONGEST: Final = 40  # a longer value is the text of a licence, not its name

_HEAD: Final = """# Third-party licences

Perdure is licensed under [Apache-2.0](../../LICENSE). `make reference` writes this page.

## Software that is not a Python package

- restate-server is licensed under [BSL 1.1](https://github.com/restatedev/restate/blob/main/LICENSE). It runs as a
  separate process, installed from npm or as an image. Perdure does not distribute it.
- The console contains htmx and htmx-ext-sse, both 0BSD, with their licences in `services/console/static`.
- The compose file downloads the images of PostgreSQL, Prometheus, Grafana, Jaeger and SeaweedFS under their own
  licences.

The Business Source License permits production use of restate-server. It excludes a managed service through which third
parties register their own services on Restate. Each release changes to Apache-2.0 four years after its publication.

## Python packages

The platform's image contains these packages (`deploy/docker/runtime.lock`). The licence is the one that the package
declares in its metadata. Packages for development only are not listed.

| package | licence |
|---|---|
"""


def page() -> str:
    """Return the page for the packages that the lock installs on this system."""
    pins = re.findall(r"^([\w.-]+==[^\\\n]+)", _LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    locked = [Requirement(pin) for pin in pins]
    names = sorted({each.name for each in locked if each.marker is None or each.marker.evaluate()})
    return _HEAD + "".join(f"| {name} | {_licence(metadata(name))} |\n" for name in names)


def _licence(package: PackageMetadata) -> str:
    if expression := package.get("License-Expression"):
        return expression
    declared = package.get("License", "").strip()
    if declared and len(declared) <= _LONGEST:
        return declared
    classifiers = [each for each in package.get_all("Classifier") or [] if each.startswith("License ::")]
    if not classifiers:
        sys.exit(
            f"{package['Name']} declares no licence in its metadata; read its licence, then name it in this script"
        )
    return ", ".join(each.rpartition(" :: ")[2] for each in classifiers)


def main(*, check: bool) -> None:
    """Write the page, or compare it.

    Args:
        check: Compare only.
    """
    expected = page()
    if not check:
        _PAGE.write_text(expected, encoding="utf-8")
    elif _PAGE.read_text(encoding="utf-8") != expected:
        sys.exit(f"{_PAGE.relative_to(_ROOT)} is out of date; run: make reference")


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
