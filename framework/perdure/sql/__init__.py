"""Effects that happen once: an idempotency table and a transactional outbox for SQLAlchemy (``perdure[sql]``).

Steps and compensations run at least once. Their effects happen once because they carry a key that the receiver checks
in the transaction of its write: `IdempotencyTable`. A program outside the engine starts handlers in the transaction of
its own write: `Outbox`. SQLite and PostgreSQL are supported, with synchronous and asynchronous connections.
"""

from perdure.sql.dispatcher import OutboxDispatcher
from perdure.sql.idempotency import IdempotencyTable
from perdure.sql.outbox import Outbox, OutboxRow

__all__ = ["IdempotencyTable", "Outbox", "OutboxDispatcher", "OutboxRow"]
