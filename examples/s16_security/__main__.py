"""Call a protected service from an engine and from other clients."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import httpx

from examples._session import ENGINE, Example, Session
from examples.s16_security.app import count, empty, production, vault
from perdure import IngressClient
from perdure.errors import ConfigurationError
from perdure.security import PrivateKey
from perdure.security.config import SecurityConfig
from perdure.security.middleware import RequestInfo, SecurityValidator
from perdure.testing import Mode, Restate, RestateServer


async def play(session: Session) -> None:
    """Run the example."""
    session.print(f"without settings, on this machine: {await session.ingress.call(count)}")
    key = PrivateKey.generate()
    validator = SecurityValidator(production(key))
    plain = validator.validate(RequestInfo(path="/invoke/Vault/count"))
    session.print(f"over HTTP: {plain.status} {plain.error_message}")
    origin = (b"origin", b"https://evil.example.com")
    page = validator.validate(RequestInfo(path="/invoke/Vault/count", scheme="https", headers=(origin,)))
    session.print(f"from a strange page: {page.status} {page.error_message}")
    stranger = validator.validate(RequestInfo(path="/invoke/Vault/count", scheme="https"))
    session.print(f"unsigned: {stranger.status} {stranger.error_message}")
    try:
        SecurityConfig(signing_keys=()).check_start()
    except ConfigurationError as error:
        session.print(f"production without keys doesn't start: {str(error).partition(':')[0]}")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "engine.pem"
        key.save(file)
        with RestateServer(install_dir=ENGINE, identity_key_file=file) as server:
            await _on_an_engine_that_signs(session, server, key)


async def _on_an_engine_that_signs(session: Session, server: RestateServer, key: PrivateKey) -> None:
    # Engine and service are on the same machine and use no TLS, so that rule is off.
    security = production(key).model_copy(update={"require_https": False})
    restate = Restate(server, Mode.REQUEST_RESPONSE)  # HTTP/1.1, for the other client
    try:
        env = await restate.serve(vault, security=security)
        async with IngressClient(env.ingress) as ingress, httpx.AsyncClient() as http:
            session.print(f"the engine that signs: {await ingress.call(count)}")
            answer = await http.post(f"{env.url}/invoke/Vault/count", content=b"")
            session.print(f"a stranger at the service's own port: {answer.status_code}")
            error = await session.refusal(ingress.call(empty))
            session.print(f"a handler that isn't public: {error.status_code} {error.message}")
    finally:
        await restate.close()


example = Example("examples.s16_security", play, (vault,))

if __name__ == "__main__":
    sys.exit(example.main())
