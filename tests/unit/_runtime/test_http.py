"""HTTP clients and the proxy variables of the environment."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure
import services
from perdure._runtime.http import http_client, is_local
from perdure.errors import ConfigurationError

LOCAL = [
    "http://127.0.0.1:8080",
    "http://localhost:8080/x",
    "http://[::1]:9",
    "https://a.localhost",
    "http://127.9.9.9",
]
REMOTE = [
    "http://engine:8080",
    "https://example.com",
    "http://10.0.0.1:8080",
    "http://127.0.0.1.example",
    "nonsense",
    "",
]

MALFORMED = {
    "NO_PROXY": ["localhost,fd07:b51a:cc66:f0::/64", "[::1"],
    "HTTP_PROXY": ["ftp://user:s3cret@proxy:1", "http://user:s3cret@proxy:port", "http://[::1"],
    "HTTPS_PROXY": ["http://user:s3cret@proxy:99999999"],
    "ALL_PROXY": ["nonsense://proxy"],
}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_tell_local_from_remote_addresses():
    assert [url for url in LOCAL if not is_local(url)] == []
    assert [url for url in REMOTE if is_local(url)] == []


@given(st.text())
def test_any_text_is_an_address_or_remote(text: str):
    assert is_local(text) in (True, False)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in MALFORMED.items() for value in values])
async def test_malformed_proxy_affects_remote_addresses_only(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    if name == "NO_PROXY":
        monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:8080")
    monkeypatch.setenv(name, value)
    for url in LOCAL:
        await http_client(url).aclose()
    with pytest.raises(ConfigurationError, match=r"^the proxy settings cannot be used") as refused:
        http_client("http://engine:8080")
    assert "\n" not in str(refused.value)
    assert "s3cret" not in str(refused.value)


async def test_proxy_is_used_for_remote_addresses_only(monkeypatch: pytest.MonkeyPatch):
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        monkeypatch.setenv("HTTP_PROXY", url)
        async with http_client(url, "http://engine.example:8080") as http:
            await http.get(f"{url}/direct")
            await http.get("http://engine.example:8080/through")
    assert requests == [b"GET /direct HTTP/1.1\r\n", b"GET http://engine.example:8080/through HTTP/1.1\r\n"]


@pytest.mark.parametrize("package", [perdure, services], ids=lambda package: str(package.__name__))
def test_all_clients_are_made_in_one_place(package):
    """A client that is made elsewhere would take the proxies of the environment for a local engine."""
    found = []
    for root in package.__path__:
        for path in Path(root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                made = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if made in ("httpx.AsyncClient", "httpx.Client", "httpx.get", "httpx.post", "httpx.request"):
                    found.append(str(path.relative_to(root)))
    assert set(found) <= {"_runtime/http.py"}
