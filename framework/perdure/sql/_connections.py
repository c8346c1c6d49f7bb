"""Connections of the user's transaction, synchronous or asynchronous."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, TypeAlias, TypeVar, cast

from sqlalchemy import Connection, Dialect, Executable, Insert, Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from perdure._runtime.engine_texts import check_name
from perdure.errors import ConfigurationError, InvalidInput

R = TypeVar("R")

SyncConnection: TypeAlias = Connection | Session
AnyAsyncConnection: TypeAlias = AsyncConnection | AsyncSession

_DIALECTS = ("sqlite", "postgresql")


async def run_sync(connection: AnyAsyncConnection, function: Callable[[SyncConnection], R]) -> R:
    """Run a function on the synchronous connection of an asynchronous one, in the same transaction."""
    return await cast("AsyncConnection", connection).run_sync(cast("Callable[[Connection], R]", function))


def transaction_of(connection: SyncConnection) -> Connection:
    """Return the connection of a session or connection in a transaction.

    Raises:
        ConfigurationError: The connection commits each statement, or its database is not supported.
    """
    inner = connection.connection() if isinstance(connection, Session) else connection
    if inner.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise ConfigurationError(
            "the connection commits each statement (AUTOCOMMIT), so a crash could store the key without the write: "
            "pass a connection or session in a transaction"
        )
    if inner.dialect.name not in _DIALECTS:
        raise ConfigurationError(
            f"perdure.sql supports SQLite and PostgreSQL; the connection uses {inner.dialect.name}"
        )
    return inner


def insert_into(table: Table, dialect: Dialect) -> Any:
    """Return the dialect's INSERT of a table, which has ``on_conflict_do_nothing``."""
    # A process imports the dialect of its own database only.
    return cast("Insert", import_module(f"sqlalchemy.dialects.{dialect.name}").insert(table))


def changed_rows(connection: Connection, statement: Executable) -> int:
    """Execute an INSERT, UPDATE or DELETE, and return the number of changed rows."""
    return connection.execute(statement).rowcount


def check_text(kind: str, text: str) -> str:
    """Return a non-empty text that engine and database can store.

    Raises:
        InvalidInput: The text is empty, too long, contains a surrogate or a NUL character.
    """
    if "\0" in check_name(kind, text, required=True):
        raise InvalidInput(f"{kind} {text!r} contains a NUL character, which PostgreSQL does not store")
    return text


def now() -> datetime:
    """Return the time in UTC, as all columns store it."""
    return datetime.now(UTC)


def in_utc(moment: datetime) -> datetime:
    """Return a stored time with its zone, which SQLite does not store."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
