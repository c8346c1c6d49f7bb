"""An engine that signs, a service that checks, and strangers."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import httpx

from examples._stage import ENGINE, Example, Stage
from examples.s16_security.app import count, empty, production, vault
from perdure import IngressClient
from perdure.errors import ConfigurationError
from perdure.security import PrivateKey
from perdure.security.config import SecurityConfig
from perdure.security.middleware import RequestInfo, SecurityValidator
from perdure.testing import Mode, Restate, RestateServer


async def play(stage: Stage) -> None:
    """Play the example."""
    stage.say(f"without settings, on this machine: {await stage.ingress.call(count)}")
    key = PrivateKey.generate()
    validator = SecurityValidator(production(key))
    plain = validator.validate(RequestInfo(path="/invoke/Vault/count"))
    stage.say(f"over HTTP: {plain.status} {plain.error_message}")
    origin = (b"origin", b"https://evil.example.com")
    page = validator.validate(RequestInfo(path="/invoke/Vault/count", scheme="https", headers=(origin,)))
    stage.say(f"from a strange page: {page.status} {page.error_message}")
    stranger = validator.validate(RequestInfo(path="/invoke/Vault/count", scheme="https"))
    stage.say(f"unsigned: {stranger.status} {stranger.error_message}")
    try:
        SecurityConfig(signing_keys=()).check_start()
    except ConfigurationError as error:
        stage.say(f"production without keys doesn't start: {str(error).partition(':')[0]}")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "engine.pem"
        key.save(file)
        with RestateServer(install_dir=ENGINE, identity_key_file=file) as server:
            await _on_an_engine_that_signs(stage, server, key)


async def _on_an_engine_that_signs(stage: Stage, server: RestateServer, key: PrivateKey) -> None:
    # There is no TLS on the way from the engine to a service of the same machine, so that rule is left out.
    security = production(key).model_copy(update={"require_https": False})
    restate = Restate(server, Mode.REQUEST_RESPONSE)  # HTTP/1.1, which the stranger speaks, too
    try:
        env = await restate.serve(vault, security=security)
        async with IngressClient(env.ingress) as ingress, httpx.AsyncClient() as http:
            stage.say(f"the engine that signs: {await ingress.call(count)}")
            answer = await http.post(f"{env.url}/invoke/Vault/count", content=b"")
            stage.say(f"a stranger at the service's own port: {answer.status_code}")
            error = await stage.refusal(ingress.call(empty))
            stage.say(f"a handler that isn't public: {error.status_code} {error.message}")
    finally:
        await restate.close()


example = Example("examples.s16_security", play, (vault,))

if __name__ == "__main__":
    sys.exit(example.main())
