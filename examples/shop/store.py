"""Table of a service, in a SQLite database of its own. A real shop has PostgreSQL and migrations here."""

import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Column, Connection, Engine, MetaData, Table, create_engine

from perdure.sql import IdempotencyTable


class Write(BaseModel):
    """Base of requests that write. The order is the idempotency key of a write and of its compensation."""

    order: str


class Store:
    """Makes changes in the folder ``SHOP_DATA``; a change and its idempotency key are one transaction."""

    def __init__(self, name: str, *columns: Column[Any]) -> None:
        self.table = Table(name, MetaData(), *columns)
        self._keys = IdempotencyTable(self.table.metadata)

    @cached_property
    def engine(self) -> Engine:
        """The engine of the database."""
        file = Path(os.environ.get("SHOP_DATA", ".")) / f"{self.table.name}.db"
        return create_engine(f"sqlite:///{file}", connect_args={"timeout": 30})

    def migrate(self) -> None:
        """Create the tables that do not exist; `perdure dev` and ``perdure serve --migrate`` call it."""
        self.table.metadata.create_all(self.engine)

    def perform(self, request: Write, change: Callable[[Connection], int]) -> int:
        """Make a change once per order. A repeat returns the result of the first one."""
        with self.engine.begin() as db:
            act = partial(change, db)
            return self._keys.perform_sync(db, request.order, act, action="change", request=request, result=int)

    def compensate(self, request: Write, reverse: Callable[[Connection, int], int]) -> int:
        """Reverse a change once, given its result. Without a change, return 0 and refuse a late one."""
        with self.engine.begin() as db:
            act = partial(reverse, db)
            return self._keys.compensate_sync(
                db, request.order, act, action="change", request=request, performed=int, voided=0
            )
