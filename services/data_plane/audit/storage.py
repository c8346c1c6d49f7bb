"""Integrity of SQLite files, for example after a kill or a full disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.audit.report import Invariant, invariant

File: TypeAlias = list[tuple[str, str]]
"""Subject and detail of each damage of a file."""


async def read(connection: AsyncConnection) -> File:
    """Run SQLite's checks of pages, indexes, constraints and foreign keys."""
    name = connection.engine.url.database
    lines = (await connection.execute(text("PRAGMA integrity_check"))).scalars()
    damage = [(f"{name}", line) for line in lines if line != "ok"]
    for table, row_id, parent, _ in await connection.execute(text("PRAGMA foreign_key_check")):
        damage.append((f"{table} row {row_id}", f"names a row of {parent} that does not exist"))
    return damage


def check(files: Sequence[File]) -> Invariant:
    """Report on all files."""
    return invariant(
        "storage",
        "each file is intact, and every foreign key has its row",
        len(files),
        [damage for file in files for damage in file],
    )
