from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ConfigurationError
from services.console.auth.client_address import trace_back
from services.console.settings import ConsoleSettings

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
HEADERS = ("x-forwarded-for", "forwarded")

proxies = st.one_of(st.ip_addresses(network="10.0.0.0/8"), st.ip_addresses(network="fd00::/8"))
clients = st.ip_addresses().filter(
    lambda address: (
        not any((getattr(address, "ipv4_mapped", None) or address) in network for network in TRUSTED)
        and not getattr(address, "scope_id", None)
    )
)
# Headers invented by a client, including ones that confuse parsers.
inventions = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(["for=", '"', ",", ";", "[", "]", ":", "10.0.0.1", "6.6.6.6", "[::1]:1", "=", "\\", " ", "by="])
    ).map("".join),
)


def format_hop(address: object, header: str, port: int | None) -> str:
    bare = ip_address(str(address))
    shown = f"[{bare}]" if bare.version == 6 and (port is not None or header == "forwarded") else str(bare)
    shown += "" if port is None else f":{port}"
    if header == "x-forwarded-for":
        return shown
    quoted = f'"{shown}"' if ":" in shown else shown
    return f"For={quoted};proto=https;by=_hidden"


@given(
    client=clients,
    path=st.lists(proxies, min_size=1, max_size=5),
    invention=st.lists(inventions, max_size=3),
    ports=st.lists(st.none() | st.integers(1, 65535), min_size=6, max_size=6),
    header=st.sampled_from(HEADERS),
    data=st.data(),
)
def test_client_cannot_forge_its_address(client, path, invention, ports, header, data):  # noqa: PLR0917
    hops = [format_hop(each, header, port) for each, port in zip([client, *path[:-1]], ports, strict=False)]
    cuts = data.draw(st.lists(st.booleans(), min_size=len(hops), max_size=len(hops)))
    lines = [*invention]
    for hop, own_line in zip(hops, cuts, strict=True):
        if own_line or not lines:
            lines.append(hop)
        else:
            lines[-1] += f", {hop}"
    found = trace_back(str(path[-1]), lines, header=header, trusted=TRUSTED)
    assert ip_address(found) == (getattr(client, "ipv4_mapped", None) or client)


@given(peer=clients, lines=st.lists(inventions), header=st.sampled_from(HEADERS))
def test_ignore_header_of_untrusted_peer(peer, lines, header):
    found = trace_back(str(peer), lines, header=header, trusted=TRUSTED)
    assert ip_address(found) == (getattr(peer, "ipv4_mapped", None) or peer)


@given(peer=st.text(), lines=st.lists(inventions), header=st.sampled_from(HEADERS))
def test_parse_any_header(peer, lines, header):
    assert isinstance(trace_back(peer, lines, header=header, trusted=TRUSTED), str)


@pytest.mark.parametrize(
    ("header", "line", "found"),
    [
        ("x-forwarded-for", "unknown", "10.0.0.9"),
        ("x-forwarded-for", "6.6.6.6, unknown", "10.0.0.9"),
        ("x-forwarded-for", "6.6.6.6, , ", "6.6.6.6"),
        ("x-forwarded-for", "6.6.6.6:abc", "10.0.0.9"),
        ("x-forwarded-for", "::ffff:6.6.6.6", "6.6.6.6"),
        ("x-forwarded-for", "[2001:db8::1]:443", "2001:db8::1"),
        ("x-forwarded-for", "10.0.0.7, 10.0.0.8", "10.0.0.7"),
        ("forwarded", "for=_hidden", "10.0.0.9"),
        ("forwarded", "by=6.6.6.6", "10.0.0.9"),
        ("forwarded", "for=6.6.6.6;for=7.7.7.7", "10.0.0.9"),
        ("forwarded", 'for=1.1.1.1;x=", for="[2001:db8::1]"', "2001:db8::1"),
        ("forwarded", 'FOR = "6.6.6.6:80"', "6.6.6.6"),
        ("x-forwarded-for", ",".join(["10.0.0.1"] * 1000), "10.0.0.1"),
        ("x-forwarded-for", ",".join(["6.6.6.6", *["10.0.0.1"] * 100]), "10.0.0.1"),
    ],
)
def test_forwarded_header_is_read_right_to_left(header, line, found):
    assert trace_back("10.0.0.9", [line], header=header, trusted=TRUSTED) == found


def test_https_requires_trusted_proxies():
    with pytest.raises(ConfigurationError, match="TRUSTED_PROXIES to the proxy's network"):
        ConsoleSettings(url="https://console.example.com").check()
    ConsoleSettings(url="https://console.example.com", trusted_proxies="10.0.0.5/32, fd00::/8").check()
    ConsoleSettings().check()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TRUSTED_PROXIES", "everyone", "is not a network in CIDR notation"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "is not a network in CIDR notation"),
        ("SIGN_INS", "often", "is not a rate such as 60/minute"),
        ("FORWARDED_HEADER", "x-real-ip", "x-forwarded-for"),
        ("STREAMS_PER_SESSION", "0", "greater than or equal to 1"),
    ],
)
def test_invalid_settings_are_reported(monkeypatch, variable, value, message):
    monkeypatch.setenv(f"PERDURE_CONSOLE_{variable}", value)
    with pytest.raises(ConfigurationError, match=rf"PERDURE_CONSOLE_{variable}.*{message}"):
        ConsoleSettings.read()


async def test_untrusted_proxy_is_logged_once(open_console, capsys, monkeypatch):
    warnings = []
    monkeypatch.setattr("services.console.auth.client_address._warned", set())
    monkeypatch.setattr(
        "services.console.auth.client_address.log.warning", lambda event, **fields: warnings.append(fields)
    )
    async with (
        open_console(url="https://console.test", trusted_proxies="10.0.0.0/8") as console,
        console.client() as client,
    ):
        for _ in range(3):
            await client.post(
                "/api/session", json={"name": "x", "password": "y"}, headers={"x-forwarded-for": "6.6.6.6"}
            )
    (fields,) = warnings
    assert fields["peer"] == "127.0.0.1"
