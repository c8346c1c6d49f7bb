"""Sign up with a click, with a wrong secret, and without a click."""

from __future__ import annotations

import sys
from datetime import timedelta

from examples._session import Example, Session
from examples.s10_signup.app import Mail, User, mailbox, sign_up, signups, verify_email


async def play(session: Session) -> None:
    """Run the example."""
    ada = User(email=session.key("ada@example.com"))
    await session.ingress.send(sign_up, ada, key=ada.email)

    async def mail() -> Mail | None:
        return mailbox.get(ada.email)

    await session.ingress.call(verify_email, (await session.until(mail)).secret, key=ada.email)
    session.print(f"ada clicked: verified = {await session.ingress.attach(sign_up, key=ada.email)}")

    eve = User(email=session.key("eve@example.com"))
    await session.ingress.send(sign_up, eve, key=eve.email)
    await session.ingress.call(verify_email, "a guess", key=eve.email)
    session.print(f"eve guessed: verified = {await session.ingress.attach(sign_up, key=eve.email)}")

    bob = User(email=session.key("bob@example.com"), link_lasts=timedelta(milliseconds=50))
    error = await session.refusal(session.ingress.call(sign_up, bob, key=bob.email))
    session.print(f"bob never looked: {error.status_code} {error.message}")


example = Example("examples.s10_signup", play, (signups,))

if __name__ == "__main__":
    sys.exit(example.main())
