"""A platform whose engine does not compress its data, and a search for texts in it.

Compression would hide unencrypted text from the search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from perdure.security.private_files import write_private
from services.runtime.settings import PlatformSettings
from services.runtime.topology import Topology

_LEGIBLE = "rocksdb-disable-wal-compression = true\nrocksdb-disable-l0-l1-compression = true\n"


def uncompressed_topology(home: Path, *, tracing: str | None = None) -> Topology:
    """Return a topology on free ports, with an engine without compression that may send spans."""
    topology = Topology.on_free_ports(home, PlatformSettings())
    config = home / "legible.toml"
    traced = f'tracing-endpoint = "{tracing}"\n' if tracing else ""
    write_private(config, _LEGIBLE + traced + topology.engine_config_file.read_text())
    return dataclasses.replace(topology, engine_config_file=config)


def found_in(folder: Path, texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the files in a folder that contain a text, by text."""
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        text: files
        for text in texts
        if (files := [path.name for path, content in contents.items() if text.encode() in content])
    }
