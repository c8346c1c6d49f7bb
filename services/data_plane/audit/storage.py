"""Integrity of a SQLite file, for example after a kill or a full disk."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.audit.report import Invariant, invariant


async def check(connection: AsyncConnection) -> Invariant:
    """Run SQLite's checks of pages, indexes, constraints and foreign keys."""
    damage = [line for line in (await connection.execute(text("PRAGMA integrity_check"))).scalars() if line != "ok"]
    breaches = [("file", line) for line in damage]
    for table, row_id, parent, _ in await connection.execute(text("PRAGMA foreign_key_check")):
        breaches.append((f"{table} row {row_id}", f"names a row of {parent} that does not exist"))
    return invariant("storage", "the file is intact, and every foreign key has its row", 1, breaches)
