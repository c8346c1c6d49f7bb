"""What people may do at the console. The roles are those that signed acts carry; see `perdure.security.Role`.

A person has any number of them, and none contains another: ``approver`` decides approvals; ``operator`` acts on dead
letters, invocations and schedules; ``administrator`` looks after persons. Who has any may look at everything.
"""

from __future__ import annotations

from perdure.security import Role

__all__ = ["Role", "may"]


def may(held: frozenset[Role], needed: Role) -> bool:
    """Tell if somebody with these roles may do what needs a role.

    Args:
        held: The roles of the person.
        needed: The role that is needed.
    """
    return needed in held or (needed is Role.VIEWER and bool(held))
