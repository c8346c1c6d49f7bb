"""A sign-up with a verification mail whose link is valid for a day."""

from __future__ import annotations

from datetime import timedelta

import restate
from pydantic import BaseModel

from perdure import (
    ControlPlaneService,
    DeterministicHelpers,
    Orchestration,
    get_internal_signal,
    race_promise_with_timeout,
    run_with_retry,
)
from perdure.errors import TerminalError


class User(BaseModel):
    """A sign-up.

    Args:
        email: The address.
        link_lasts: Validity of the link.
    """

    email: str
    link_lasts: timedelta = timedelta(days=1)


class Mail(BaseModel):
    """A mail.

    Args:
        to: The recipient.
        secret: The secret in the link.
    """

    to: str
    secret: str


mailbox: dict[str, Mail] = {}
"""The last mail to each address."""


def send_mail(mail: Mail) -> None:
    """Deliver a mail."""
    mailbox[mail.to] = mail


signups = ControlPlaneService("Signups")


@signups.main
async def sign_up(cp: Orchestration, user: User) -> bool:
    """Send the mail, wait for the click, and tell whether the secret was correct."""
    secret = str(DeterministicHelpers(cp.ctx).uuid())
    await run_with_retry(cp.ctx, "send-verification-mail", send_mail, Mail(to=user.email, secret=secret))
    click = await race_promise_with_timeout(cp.ctx, "email-verified", user.link_lasts, str)
    if click.timed_out:
        raise TerminalError("email verification timeout", 408)
    return click.value == secret


@signups.handler(public=True)
async def verify_email(ctx: restate.WorkflowSharedContext, secret: str) -> None:
    """Handle the click on the link."""
    await get_internal_signal(ctx, "email-verified", str).resolve(secret)
