"""Who someone is, in one spelling.

``Ada@example.com`` and ``ada@example.com`` are one person. If they were two, someone could approve their own request,
or decide twice, by writing their name in another way. So every name that comes in is brought to one form first.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, StringConstraints

from perdure._runtime.plain_text import check_visible

ANYONE: Final = "anyone"
"""The inbox of approvals that anyone may decide; nobody can have it as a name."""

GROUP_PREFIX: Final = "group:"
"""What a group's name begins with where people and groups may stand; nobody's name begins with it."""

PROGRAM_PREFIX: Final = "key:"
"""What the name of a program begins with that calls with an API key, ``key:shop``; nobody's name begins with it."""

# Letters and marks that are not seen although Unicode counts them as printable (Default_Ignorable_Code_Point).
_INVISIBLE: Final = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def canonical_user(name: str) -> str:
    """Return a name in the form by which people are compared: no case, no look-alikes by encoding, nothing unseen.

    Letters of different scripts that only look alike stay different.

    Args:
        name: The name as it was written, for example an e-mail address.

    Returns:
        The name, Unicode-normalised (NFKC), case-folded, with single spaces; may be empty.
    """
    while True:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        seen = "".join(_seen(character) for character in _INVISIBLE.sub("", folded))
        person = " ".join(seen.split())
        if person == name:
            return person
        name = person  # what was taken out may have parted what belongs together


def _seen(character: str) -> str:
    if character.isspace():
        return " "
    return character if character.isprintable() else ""


def check_name(name: str) -> str:
    """Return the canonical form of a name that somebody gives, and refuse one that does not show all that it holds.

    Args:
        name: The name as it was written.

    Raises:
        ValueError: It holds an invisible character, for example a line break, a zero-width space or an override of the
            reading direction. Dropping it would make two names that were written differently the same.
    """
    return canonical_user(check_visible(name))


def _somebody(name: str) -> str:
    person = check_name(name)
    if not person:
        raise ValueError("a person's name may not be empty")
    if person == ANYONE:
        raise ValueError(f"'{ANYONE}' is nobody's name: it stands for the approvals that anyone may decide")
    if is_group(person):
        raise ValueError(f"'{person}' is a group, and a person is needed")
    if person.startswith(PROGRAM_PREFIX):
        raise ValueError(f"'{person}' is a program, and a person is needed")
    return person


def mailbox_of(name: str) -> str:
    """Return the mailbox behind a canonical name: ``ada@example.com`` for ``ada+trips@example.com`` (RFC 5233).

    It is for telling that two names belong to one person, never for telling that a person is who they say they are:
    not every mail server reads the ``+`` so. Other aliases are unknown here, such as dots that some servers ignore.

    Args:
        name: The name; one that is no e-mail address is returned as it is.
    """
    local, at, domain = name.rpartition("@")
    mailbox, plus, _ = local.partition("+")
    return f"{mailbox}{at}{domain}" if plus and mailbox else name


def is_one_of(person: str, names: Iterable[str]) -> bool:
    """Tell if a person is among some people, also under an alias of their mailbox.

    Args:
        person: The person's canonical name.
        names: Canonical names; the empty one is nobody's.
    """
    mailbox = mailbox_of(person)
    return any(name and mailbox_of(name) == mailbox for name in names)


def is_group(name: str) -> bool:
    """Tell if a canonical name is a group's, as in ``group:finance``."""
    return name.startswith(GROUP_PREFIX)


def group_of(name: str) -> str:
    """Return the group's own name, ``finance`` for ``group:finance``."""
    return canonical_user(name.removeprefix(GROUP_PREFIX))


def _group(name: str) -> str:
    group = check_name(name)
    if not group or group == ANYONE or is_group(group):
        raise ValueError("the name of a group is needed, without 'group:' before it")
    return group


def _approver(name: str) -> str:
    folded = check_name(name)
    return f"{GROUP_PREFIX}{_group(group_of(folded))}" if is_group(folded) else _somebody(name)


def _veto_holder(name: str) -> str:
    return ANYONE if check_name(name) == ANYONE else _approver(name)


Person: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_somebody)]
"""A person's name, 1 to 200 characters; kept in its canonical form."""

GroupName: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_group)]
"""A group's own name, as ``finance``; kept in its canonical form."""

Approver: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=206), AfterValidator(_approver)]
"""A person, or a group as ``group:finance``: any of its members."""

VetoHolder: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=206), AfterValidator(_veto_holder)]
"""A person or a group, or ``anyone``: whoever may decide."""
