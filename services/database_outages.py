"""Names outages of a database in the words of an operator, instead of a driver's exception.

A driver reports one outage in many ways: an `OSError` at the connection, its own error, or SQLAlchemy's. All become
`DatabaseUnavailable`, for example "the database at db:5432 refuses connections". Other errors stay as they are.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from perdure._runtime.disks import disk_problem
from perdure.errors import PerdureError, causes

_LOST: Final = "has closed the connection"
# By SQLSTATE, or its class of two characters. See appendix A of PostgreSQL's manual.
_POSTGRES: Final = {
    "57P01": "is stopping",
    "57P02": "has crashed and is starting again",
    "57P03": "is starting or stopping",
    "53100": "has a full disk",
    "53200": "has no memory left",
    "53300": "has no free connection",
    "25006": "is read-only",
    "58030": "cannot read or write its files",
    "08": _LOST,
}
# These need a change of the URL or the database.
_POSTGRES_REFUSALS: Final = {
    "28": "rejects the user or password",
    "3D000": "does not contain the database of the URL",
}
# By primary result code, see https://sqlite.org/rescode.html.
_SQLITE: Final = {8: "is read-only", 10: "cannot be read or written", 13: "has a full disk", 14: "cannot be opened"}


class DatabaseUnavailable(PerdureError):
    """The database does not work at the moment. The message names its address and the cause.

    Args:
        message: Address and cause, without password.
        may_recover: The cause often passes within seconds. A wrong host name, user or file does not.
    """

    def __init__(self, message: str, *, may_recover: bool) -> None:
        super().__init__(message)
        self.may_recover = may_recover


@contextmanager
def naming_outages(url: URL) -> Iterator[None]:
    """Raise `DatabaseUnavailable` from the errors of an outage; leave other errors unchanged.

    Args:
        url: The database. The block must use no other network service, since network errors are taken for its own.

    Raises:
        DatabaseUnavailable: The block failed because of an outage.
    """
    try:
        yield
    except Exception as error:
        found = _outage(url, error)
        if found is None:
            raise
        problem, may_recover = found
        raise DatabaseUnavailable(f"{describe_database(url)} {problem}", may_recover=may_recover) from error


def describe_database(url: URL) -> str:
    """Return the name of a database in messages: its address without user and password.

    Args:
        url: The database.
    """
    if url.get_backend_name() == "sqlite":
        return f"the database {url.database}"
    host = url.host or url.query.get("host") or "localhost"
    if isinstance(host, tuple):
        host = ", ".join(host)
    if host.startswith("/"):  # the folder of a Unix socket
        return f"the database in {host}"
    shown = f"[{host}]" if ":" in host else host
    return f"the database at {shown}:{url.port or url.query.get('port') or 5432}"


def one_line(error: Exception) -> str:
    """Return the driver's message of an error, without SQL and parameters."""
    return " ".join(str(getattr(error, "orig", None) or error).split()) or type(error).__name__


def _outage(url: URL, error: Exception) -> tuple[str, bool] | None:
    if isinstance(error, PoolTimeout):
        return "is slow: all connections of this process are in use", True
    if isinstance(error, DBAPIError):
        chain = [] if error.orig is None else list(causes(error.orig))
    else:
        # An error of the connection. The causes of an application's error are its own business.
        is_drivers = isinstance(error, OSError) or type(error).__module__.startswith("asyncpg")
        chain = [error] if is_drivers else []
    for cause in chain:
        if (found := _of_postgres(cause) or _of_sqlite(url, cause) or _of_network(cause)) is not None:
            return found
    if isinstance(error, DBAPIError):
        return (_LOST, True) if error.connection_invalidated else None
    return (f"does not accept the connection: {error}", False) if chain else None


def _of_postgres(error: BaseException) -> tuple[str, bool] | None:
    state = str(getattr(error, "sqlstate", None) or "")
    for table, may_recover in ((_POSTGRES, True), (_POSTGRES_REFUSALS, False)):
        if (problem := table.get(state) or table.get(state[:2])) is not None:
            return f"{problem}: {error}" if not may_recover else problem, may_recover
    return None


def _of_sqlite(url: URL, error: BaseException) -> tuple[str, bool] | None:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or (problem := _SQLITE.get(code & 0xFF)) is None:  # the low byte is the primary code
        return None
    disk = disk_problem(Path(url.database or ""))
    return f"{problem} ({disk})" if disk else problem, False


def _of_network(error: BaseException) -> tuple[str, bool] | None:
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):  # a Unix socket that does not exist
        return "refuses connections", True
    if isinstance(error, socket.gaierror):
        return f"has an unknown host name: {error.strerror}", error.errno == socket.EAI_AGAIN
    if isinstance(error, TimeoutError):
        return "does not answer", True
    if isinstance(error, ConnectionError):
        return _LOST, True
    if isinstance(error, OSError):
        return f"cannot be reached: {error.strerror or error}", True
    return None
