"""Migrations of the tables, for Alembic.

Call the functions in a migration of yours. They create the tables as this version of Perdure needs them. A later
version that needs another column adds a function for it.

Example:
    from alembic import op
    from perdure.sql import migrations

    def upgrade() -> None:
        migrations.create_idempotency_table(op)
        migrations.create_outbox_table(op)

    def downgrade() -> None:
        op.drop_table("perdure_outbox")
        op.drop_table("perdure_operations")
"""

from __future__ import annotations

from typing import Any

from perdure.sql import idempotency, outbox


def create_idempotency_table(op: Any, name: str = "perdure_operations") -> None:
    """Create the table of `perdure.sql.IdempotencyTable`.

    Args:
        op: Alembic's ``op``.
        name: The name of the table.
    """
    op.create_table(name, *idempotency.columns())


def create_outbox_table(op: Any, name: str = "perdure_outbox") -> None:
    """Create the table of `perdure.sql.Outbox`.

    Args:
        op: Alembic's ``op``.
        name: The name of the table.
    """
    op.create_table(name, *outbox.columns())
