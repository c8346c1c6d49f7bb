"""The console's own tables, and how an older database is brought up to date."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Dialect,
    Index,
    MetaData,
    String,
    Text,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from perdure.errors import ConfigurationError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Moment(TypeDecorator[datetime]):
    """An aware datetime, kept as microseconds since 1970: the same on SQLite, which knows no time zones."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002 - SQLAlchemy's name
        """Return what is kept of a moment."""
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's name
        """Return the moment of what was kept."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Base(DeclarativeBase):
    """The tables of the console."""

    metadata = MetaData()


class UserRow(Base):
    """Somebody who may sign in."""

    __tablename__ = "persons"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    password_hash: Mapped[str] = mapped_column(Text)
    roles: Mapped[list[str]] = mapped_column(JSON)
    groups: Mapped[list[str]] = mapped_column(JSON)
    disabled: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(Moment)


class SessionRow(Base):
    """Somebody who is signed in. The id is a hash: who reads the table can't take the session over."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    person: Mapped[str] = mapped_column(String(200), index=True)
    csrf: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Moment)
    seen_at: Mapped[datetime] = mapped_column(Moment)
    ends_at: Mapped[datetime] = mapped_column(Moment)
    address: Mapped[str] = mapped_column(String(64))
    agent: Mapped[str] = mapped_column(String(300))
    notice: Mapped[str | None] = mapped_column(Text)


class AttemptRow(Base):
    """A failed sign-in, or one under way, of a name or from an address."""

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_whose_at", "whose", "at"),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    whose: Mapped[str] = mapped_column(String(300))
    at: Mapped[datetime] = mapped_column(Moment)


class DeviceRow(Base):
    """A browser or an address from which a person signed in; of a browser's token, the hash."""

    __tablename__ = "devices"

    person: Mapped[str] = mapped_column(String(200), primary_key=True)
    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(Moment)


class ApiKeyRow(Base):
    """A key of a program. The hash is what is kept of it."""

    __tablename__ = "api_keys"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    handlers: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Moment)
    created_by: Mapped[str] = mapped_column(String(200))
    expires_at: Mapped[datetime | None] = mapped_column(Moment)


class ActionRow(Base):
    """What was done to persons and invocations, by whom; rows are only added."""

    __tablename__ = "acts"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(Moment)
    actor: Mapped[str] = mapped_column(String(200))
    act: Mapped[str] = mapped_column(String(40))
    person: Mapped[str] = mapped_column(String(300))
    details: Mapped[str] = mapped_column(Text)


class RightsRow(Base):
    """What the engine has to know of a person's rights: one row for each person, sent until the engine has it."""

    __tablename__ = "rights"

    person: Mapped[str] = mapped_column(String(200), primary_key=True)
    changed_at: Mapped[datetime] = mapped_column(Moment)
    changed_by: Mapped[str] = mapped_column(String(200))
    revoked_before: Mapped[datetime | None] = mapped_column(Moment)
    sent: Mapped[datetime | None] = mapped_column(Moment)


class SchemaRow(Base):
    """Which version the tables have."""

    __tablename__ = "console_schema"

    version: Mapped[int] = mapped_column(primary_key=True)


def _add_api_keys(connection: Connection) -> None:
    ApiKeyRow.metadata.tables[ApiKeyRow.__tablename__].create(connection)


def _add_devices(connection: Connection) -> None:
    DeviceRow.metadata.tables[DeviceRow.__tablename__].create(connection)


def _add_rights(connection: Connection) -> None:
    RightsRow.metadata.tables[RightsRow.__tablename__].create(connection)
    known = select(UserRow.name, literal(datetime.now(UTC), Moment), literal("an upgrade"))
    connection.execute(insert(RightsRow).from_select(["person", "changed_at", "changed_by"], known))


UPGRADES: Final[tuple[Callable[[Connection], None], ...]] = (_add_api_keys, _add_devices, _add_rights)
"""What leads from each version to the next; the first one from version 1 to 2."""

VERSION: Final = 1 + len(UPGRADES)


def bring_up_to_date(connection: Connection) -> None:
    """Make the tables, or bring those of an older version up to date, in one transaction.

    Args:
        connection: An open transaction.

    Raises:
        ConfigurationError: The tables are of a later version than this program.
    """
    SchemaRow.metadata.tables[SchemaRow.__tablename__].create(connection, checkfirst=True)
    found = connection.scalar(select(SchemaRow.version))
    if found is None:
        Base.metadata.create_all(connection)
        connection.execute(insert(SchemaRow).values(version=VERSION))
        return
    if found > VERSION:
        raise ConfigurationError(
            f"the console's database has version {found}, and this program knows {VERSION}: run the newer program"
        )
    for upgrade in UPGRADES[found - 1 :]:
        upgrade(connection)
    connection.execute(update(SchemaRow).values(version=VERSION))
