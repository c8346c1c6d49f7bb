"""A sign-up that waits for a click in a mail, for a day at most."""

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
    """Who signs up.

    Args:
        email: Where the mail goes.
        link_lasts: How long the link in it works.
    """

    email: str
    link_lasts: timedelta = timedelta(days=1)


class Mail(BaseModel):
    """What is sent.

    Args:
        to: Whom to.
        secret: What the link in it carries.
    """

    to: str
    secret: str


mailbox: dict[str, Mail] = {}
"""The last mail to each address: what a mail server would hold."""


def send_mail(mail: Mail) -> None:
    """Deliver a mail."""
    mailbox[mail.to] = mail


signups = ControlPlaneService("Signups")


@signups.main
async def sign_up(cp: Orchestration, user: User) -> bool:
    """Send the mail, and wait until the link in it is clicked. Tell if the secret was the right one."""
    secret = str(DeterministicHelpers(cp.ctx).uuid())
    await run_with_retry(cp.ctx, "send-verification-mail", send_mail, Mail(to=user.email, secret=secret))
    click = await race_promise_with_timeout(cp.ctx, "email-verified", user.link_lasts, str)
    if click.timed_out:
        raise TerminalError("email verification timeout", 408)
    return click.value == secret


@signups.handler(public=True)
async def verify_email(ctx: restate.WorkflowSharedContext, secret: str) -> None:
    """Take the click: what the link in the mail calls."""
    await get_internal_signal(ctx, "email-verified", str).resolve(secret)
