"""Somebody who clicks, somebody who guesses, and somebody who doesn't read mails."""

from __future__ import annotations

import sys
from datetime import timedelta

from examples._stage import Example, Stage
from examples.s10_signup.app import Mail, User, mailbox, sign_up, signups, verify_email


async def play(stage: Stage) -> None:
    """Play the example."""
    ada = User(email=stage.key("ada@example.com"))
    await stage.ingress.send(sign_up, ada, key=ada.email)

    async def mail() -> Mail | None:
        return mailbox.get(ada.email)

    await stage.ingress.call(verify_email, (await stage.until(mail)).secret, key=ada.email)
    stage.say(f"ada clicked: verified = {await stage.ingress.attach(sign_up, key=ada.email)}")

    eve = User(email=stage.key("eve@example.com"))
    await stage.ingress.send(sign_up, eve, key=eve.email)
    await stage.ingress.call(verify_email, "a guess", key=eve.email)
    stage.say(f"eve guessed: verified = {await stage.ingress.attach(sign_up, key=eve.email)}")

    bob = User(email=stage.key("bob@example.com"), link_lasts=timedelta(milliseconds=50))
    error = await stage.refusal(stage.ingress.call(sign_up, bob, key=bob.email))
    stage.say(f"bob never looked: {error.status_code} {error.message}")


example = Example("examples.s10_signup", play, (signups,))

if __name__ == "__main__":
    sys.exit(example.main())
