"""The tables of the console's database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Connection, Dialect, Index, MetaData, String, Text, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from perdure.errors import ConfigurationError

VERSION: Final = 1
"""The version of the tables, stored in the database."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class UtcTimestamp(TypeDecorator[datetime]):
    """An aware datetime, stored as microseconds since 1970 because SQLite has no time zones."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002 - SQLAlchemy's name
        """Return the stored value."""
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's name
        """Return the datetime of a stored value."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Base(DeclarativeBase):
    """Base of the console's tables."""

    metadata = MetaData()


class UserRow(Base):
    """A user."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    password_hash: Mapped[str] = mapped_column(Text)
    roles: Mapped[list[str]] = mapped_column(JSON)
    groups: Mapped[list[str]] = mapped_column(JSON)
    disabled: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(UtcTimestamp)


class SessionRow(Base):
    """A session. The ID is the hash of its token, so read access to the table does not reveal a token."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_name: Mapped[str] = mapped_column(String(200), index=True)
    csrf: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcTimestamp)
    seen_at: Mapped[datetime] = mapped_column(UtcTimestamp)
    ends_at: Mapped[datetime] = mapped_column(UtcTimestamp)
    address: Mapped[str] = mapped_column(String(64))
    agent: Mapped[str] = mapped_column(String(300))
    notice: Mapped[str | None] = mapped_column(Text)


class FailedSignInRow(Base):
    """A failed or pending sign-in, under one of the keys of `services.console.auth.failed_sign_ins`."""

    __tablename__ = "failed_sign_ins"
    __table_args__ = (Index("ix_failed_sign_ins_key_at", "key", "at"),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    key: Mapped[str] = mapped_column(String(300))
    at: Mapped[datetime] = mapped_column(UtcTimestamp)


class DeviceRow(Base):
    """A browser (by the hash of its token) or an address from which a user has signed in."""

    __tablename__ = "devices"

    user_name: Mapped[str] = mapped_column(String(200), primary_key=True)
    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(UtcTimestamp)


class ApiKeyRow(Base):
    """An API key, stored as a hash."""

    __tablename__ = "api_keys"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    handlers: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcTimestamp)
    created_by: Mapped[str] = mapped_column(String(200))
    expires_at: Mapped[datetime | None] = mapped_column(UtcTimestamp)


class ActionRow(Base):
    """An action on a user, an API key or an invocation; never changed, and deleted after its retention."""

    __tablename__ = "actions"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcTimestamp)
    actor: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(300))
    details: Mapped[str] = mapped_column(Text)


class RightsRow(Base):
    """The latest change of a user's rights, and the change that the engine last received."""

    __tablename__ = "rights"

    user_name: Mapped[str] = mapped_column(String(200), primary_key=True)
    changed_at: Mapped[datetime] = mapped_column(UtcTimestamp)
    changed_by: Mapped[str] = mapped_column(String(200))
    revoked_before: Mapped[datetime | None] = mapped_column(UtcTimestamp)
    published: Mapped[datetime | None] = mapped_column(UtcTimestamp)


class SchemaRow(Base):
    """The version of the tables."""

    __tablename__ = "console_schema"

    version: Mapped[int] = mapped_column(primary_key=True)


def create_tables(connection: Connection) -> None:
    """Create the tables in an empty database.

    Raises:
        ConfigurationError: The tables have another version.
    """
    SchemaRow.metadata.tables[SchemaRow.__tablename__].create(connection, checkfirst=True)
    found = connection.scalar(select(SchemaRow.version))
    if found is None:
        Base.metadata.create_all(connection)
        connection.execute(insert(SchemaRow).values(version=VERSION))
    elif found != VERSION:
        raise ConfigurationError(
            f"the console's database has schema version {found}, this release needs {VERSION}: use the matching "
            "release, or delete the database and create the users again"
        )
