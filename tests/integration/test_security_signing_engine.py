"""Request identity with a signing restate-server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import restate as sdk

from perdure.engine.admin import AdminClient
from perdure.errors import EngineError
from perdure.security import PrivateKey
from perdure.security.config import SecurityConfig, ValidationMode
from perdure.serving import HttpVersion, ServiceApp, build_app
from perdure.testing import RestateServer, ServedApp
from perdure.testing.plugin import RestateServers
from tests.support import eventually

pytestmark = pytest.mark.restate_modes("all")

shy = sdk.Service("ShyGreeter")


@shy.handler()
async def greet(ctx: sdk.Context, name: str) -> str:
    return await ctx.run_typed("greet", lambda: f"hello {name}")


@shy.handler(ingress_private=False)
async def wave(ctx: sdk.Context, name: str) -> str:
    return f"o/ {name}"


@pytest.fixture(scope="module")
def engine_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrivateKey]:
    path = tmp_path_factory.mktemp("keys") / "engine.pem"
    key = PrivateKey.generate()
    key.save(path)
    return path, key


@pytest.fixture(scope="module")
def signing_engine(restate_servers: RestateServers, engine_key: tuple[Path, PrivateKey]) -> Iterator[RestateServer]:
    """Engine that signs its requests."""
    with RestateServer(install_dir=restate_servers.install_dir, identity_key_file=engine_key[0]) as server:
        yield server


def app_for(*keys: PrivateKey, mode: ValidationMode = ValidationMode.STRICT, public_only: bool = False) -> ServiceApp:
    return build_app(
        shy,
        security=SecurityConfig(
            signing_keys=tuple(key.public.id for key in keys),
            require_https=False,
            restrict_public_access=public_only,
            validation_mode=mode,
        ),
    )


@pytest.mark.parametrize("http", ["1", "2"])
async def test_only_requests_of_the_engine_are_served(
    signing_engine: RestateServer, engine_key: tuple[Path, PrivateKey], http: HttpVersion
):
    rotated = PrivateKey.generate()
    with ServedApp(app_for(rotated, engine_key[1]), http=http) as served:
        async with AdminClient(signing_engine.admin) as admin:
            assert await admin.register(served.url, use_http_11=http == "1") == ["ShyGreeter"]
        async with httpx.AsyncClient(http2=False) as client:
            answer = await client.post(f"{signing_engine.ingress}/ShyGreeter/greet", json="ada")
            assert (answer.status_code, answer.json()) == (200, "hello ada")
            if http == "1":  # httpx has no HTTP/2 without TLS
                for path in ("/discover", "/invoke/ShyGreeter/greet", "/x/invoke/ShyGreeter/greet", "/", "/x/health"):
                    refused = await client.post(served.url + path, content=b"x")
                    assert (path, refused.status_code, refused.text) == (path, 401, "the request is not signed\n")
                assert (await client.get(f"{served.url}/health")).status_code == 200
                assert (await client.get(f"{served.url}/ready")).status_code == 200
                assert (await client.get(f"{served.url}/metrics")).status_code == 200  # from the local machine


@pytest.mark.parametrize("http", ["1", "2"])
async def test_refuse_engine_with_another_key(signing_engine: RestateServer, http: HttpVersion):
    with ServedApp(app_for(PrivateKey.generate()), http=http) as served:
        async with AdminClient(signing_engine.admin) as admin:
            with pytest.raises(EngineError, match="401"):
                await admin.register(served.url, use_http_11=http == "1")


async def test_ingress_serves_only_public_handlers(signing_engine: RestateServer, engine_key: tuple[Path, PrivateKey]):
    with ServedApp(app_for(engine_key[1], public_only=True)) as served:
        async with AdminClient(signing_engine.admin) as admin, httpx.AsyncClient() as client:
            await admin.register(served.url)

            async def waves() -> httpx.Response | None:
                answer = await client.post(f"{signing_engine.ingress}/ShyGreeter/wave", json="ada")
                return answer if answer.status_code == 200 else None

            assert (await eventually(waves, what="answer of a public handler")).json() == "o/ ada"
            hidden = await client.post(f"{signing_engine.ingress}/ShyGreeter/greet", json="ada")
            assert hidden.status_code == 400
            assert "not public" in hidden.text
    assert shy.handlers["greet"].ingress_private is None  # the service itself is unchanged


async def test_permissive_mode_serves_unsigned_requests(
    signing_engine: RestateServer, caplog: pytest.LogCaptureFixture
):
    with ServedApp(app_for(PrivateKey.generate(), mode=ValidationMode.PERMISSIVE)) as served:
        async with AdminClient(signing_engine.admin) as admin:
            assert await admin.register(served.url) == ["ShyGreeter"]
    assert "violates a security rule (permissive)" in caplog.text
