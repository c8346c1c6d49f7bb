"""Canonical names of users, groups and programs.

``Ada@example.com`` and ``ada@example.com`` are one person. As two, that person could approve their own request or vote
twice. So names are canonicalised on input.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, StringConstraints

from perdure._runtime.plain_text import check_visible

ANYONE: Final = "anyone"
"""The inbox of approvals that anyone may decide; reserved, so not a user name."""

GROUP_PREFIX: Final = "group:"
"""The prefix of groups in lists of approvers; reserved, so not the beginning of a user name."""

PROGRAM_PREFIX: Final = "key:"
"""The prefix of programs that call with an API key, as in ``key:shop``; reserved likewise."""

# Letters and marks that render as nothing although Unicode counts them as printable (Default_Ignorable_Code_Point).
_INVISIBLE: Final = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def canonical_user(name: str) -> str:
    """Return the canonical form of a name, by which users are compared.

    Similar letters of different scripts stay different.

    Returns:
        The name in Unicode form NFKC, case-folded, without invisible characters and with single spaces. May be empty.
    """
    while True:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        visible = "".join(_visible(character) for character in _INVISIBLE.sub("", folded))
        canonical = " ".join(visible.split())
        if canonical == name:
            return canonical
        name = canonical  # removing characters can let others combine, so repeat until stable


def _visible(character: str) -> str:
    if character.isspace():
        return " "
    return character if character.isprintable() else ""


def check_name(name: str) -> str:
    """Return the canonical form of an entered name, and refuse invisible characters.

    Raises:
        ValueError: The name contains an invisible character, such as a line break, a zero-width space or a direction
            override. Removing it would make two different inputs the same name.
    """
    return canonical_user(check_visible(name))


def check_user(name: str) -> str:
    """Return the canonical form of a user name.

    Raises:
        ValueError: The name is empty, reserved, or contains an invisible character.
    """
    user = check_name(name)
    if not user:
        raise ValueError("a user name cannot be empty")
    if user == ANYONE:
        raise ValueError(f"'{ANYONE}' is a reserved name")
    if is_group(user):
        raise ValueError(f"'{user}' is a group, not a person")
    if user.startswith(PROGRAM_PREFIX):
        raise ValueError(f"'{user}' is a program, not a person")
    return user


def mailbox_of(name: str) -> str:
    """Return the mailbox of an e-mail address: ``ada@example.com`` for ``ada+trips@example.com`` (RFC 5233).

    Use it to detect that two names belong to one person, never to authenticate: some mail servers read the ``+``
    differently. Other aliases, such as ignored dots, are not detected.

    Args:
        name: The canonical name. A name that is not an e-mail address is returned unchanged.
    """
    local, at, domain = name.rpartition("@")
    mailbox, plus, _ = local.partition("+")
    return f"{mailbox}{at}{domain}" if plus and mailbox else name


def shares_mailbox(user: str, names: Iterable[str]) -> bool:
    """Return whether a user is among other users, also under an alias of their mailbox.

    Args:
        user: The canonical name.
        names: Canonical names; empty ones match no user.
    """
    mailbox = mailbox_of(user)
    return any(name and mailbox_of(name) == mailbox for name in names)


def is_group(name: str) -> bool:
    """Return whether a canonical name denotes a group, as ``group:finance`` does."""
    return name.startswith(GROUP_PREFIX)


def group_of(name: str) -> str:
    """Return the group's own name, ``finance`` for ``group:finance``."""
    return canonical_user(name.removeprefix(GROUP_PREFIX))


def check_group(name: str) -> str:
    """Return the canonical form of a group name.

    Raises:
        ValueError: The name is empty, reserved, or contains an invisible character.
    """
    group = check_name(name)
    if not group or group == ANYONE or is_group(group):
        raise ValueError("enter the name of a group, without the prefix 'group:'")
    return group


def _check_approver(name: str) -> str:
    canonical = check_name(name)
    return f"{GROUP_PREFIX}{check_group(group_of(canonical))}" if is_group(canonical) else check_user(name)


def _check_veto_holder(name: str) -> str:
    return ANYONE if check_name(name) == ANYONE else _check_approver(name)


UserName: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(check_user)]
"""Canonical user name of 1 to 200 characters."""

GroupName: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(check_group)]
"""Canonical group name without prefix, such as ``finance``."""

Approver: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=206), AfterValidator(_check_approver)]
"""A user, or any member of a group as ``group:finance``."""

VetoHolder: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=206), AfterValidator(_check_veto_holder)
]
"""A user, a group, or ``anyone`` for every eligible approver."""
