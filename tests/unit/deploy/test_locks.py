"""The image's lock files contain the versions and hashes of the main lock file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def pins(lock: str) -> dict[str, list[str]]:
    """Return a lock's versions and hashes by package, without environment markers, which differ between locks."""
    entries = re.split(r"^(?=\S)", (ROOT / lock).read_text(), flags=re.MULTILINE)
    found = [re.match(r"([\w.-]+)==([^\s;]+)", entry) for entry in entries]
    return {
        match[1]: [match[2], *re.findall(r"--hash=(\S+)", entry)]
        for match, entry in zip(found, entries, strict=True)
        if match is not None
    }


@pytest.mark.parametrize("name", ["runtime", "build"])
def test_image_lock_matches_tested_versions(name: str) -> None:
    tested = pins("requirements.lock")
    image = pins(f"deploy/docker/{name}.lock")
    assert len(image) >= 5
    assert {package: pin for package, pin in image.items() if tested.get(package) != pin} == {}, "run: make lock"
    assert all(len(pin) > 1 for pin in image.values())


def test_image_lock_contains_no_tools() -> None:
    image = set(pins("deploy/docker/runtime.lock"))
    assert not {"pytest", "ruff", "mypy", "hatchling", "playwright", "setuptools", "pip"} & image
    assert {"restate-sdk", "granian", "asyncpg", "pynacl"} <= image
