"""The roles of users, the same as those of signed actions (`perdure.security.Role`).

No role includes another: ``approver`` votes on approvals; ``operator`` acts on dead letters, invocations and schedules;
``administrator`` manages users and API keys. Any role permits viewing everything.
"""

from __future__ import annotations

from perdure.security import Role

__all__ = ["Role", "is_permitted"]


def is_permitted(held: frozenset[Role], needed: Role) -> bool:
    """Return whether a user with these roles may do what needs a role."""
    return needed in held or (needed is Role.VIEWER and bool(held))
