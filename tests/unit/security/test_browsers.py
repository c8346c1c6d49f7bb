"""Rules that distinguish requests of web pages from those of programs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ConfigurationError
from perdure.security.browsers import BrowserRules, host_name, is_rebindable

INGRESS = BrowserRules(hosts=frozenset({"localhost", "127.0.0.1", "[::1]", "api.example.com"}))
SHOP = "https://shop.example.com"
OPEN = BrowserRules(origins=frozenset({SHOP}))
ADMIN = BrowserRules(has_pages=True)

LOCAL = (b"host", b"localhost:8080")
TEXT = st.text(st.characters(codec="latin-1"), max_size=40).map(lambda text: text.encode("latin-1"))
NAMES = st.sampled_from([b"accept", b"cookie", b"x-a", b"sec-fetch-mode", b"referer", b"content-type"])
OTHERS = st.lists(st.tuples(NAMES, TEXT), max_size=4)


def code(rules, *headers, method="POST", path=b"/Trips/a/run"):
    refusal = rules.refusal(method, path, headers)
    return None if refusal is None else refusal.code


@given(OTHERS, TEXT)
def test_any_foreign_origin_is_refused(others, origin):
    assert code(INGRESS, LOCAL, (b"origin", origin), *others) == "browser_origin"
    assert code(ADMIN, LOCAL, (b"origin", b"http://evil/" + origin), *others) == "browser_origin"


@given(OTHERS, TEXT.filter(lambda value: value.strip().lower() != b"none"))
def test_any_page_request_is_refused(others, site):
    assert code(INGRESS, LOCAL, (b"sec-fetch-site", site), *others) == "browser_origin"


@given(TEXT)
def test_only_listed_hosts_are_served(host):
    expected = None if host_name(host) in INGRESS.hosts else "foreign_host"
    assert code(INGRESS, (b"host", host)) == expected


@given(st.sampled_from(["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "api.example.com", "Api.Example.Com."]))
def test_listed_hosts_are_served_at_any_port(name):
    assert code(INGRESS, (b"host", name.encode())) is None
    assert code(INGRESS, (b"host", f"{name}:8080".encode())) is None


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example.com",
        b"localhost.evil.com",
        b"127.0.0.1.evil.com",
        b"evil.com:8080@localhost",
        b"localhost@evil.com",
        b"localhost evil.com",
        b"localhost/evil",
        b"0.0.0.0:8080",
        b"localhost:8080:1",
        b"localhost:",
        b"",
    ],
)
def test_foreign_host_is_refused(host):
    assert code(INGRESS, (b"host", host)) == "foreign_host"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [LOCAL, LOCAL],
        [LOCAL, (b"host", b"evil.example.com")],
        [LOCAL, (b"content-length", b"1"), (b"content-length", b"2")],
        [LOCAL, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
    ],
)
def test_ambiguous_request_is_refused(headers):
    assert code(INGRESS, *headers) == "ambiguous_request"


def test_preflight_is_refused():
    preflight = (LOCAL, (b"origin", b"https://evil.example.com"), (b"access-control-request-method", b"POST"))
    assert code(INGRESS, *preflight, method="OPTIONS") == "browser_origin"
    assert code(ADMIN, *preflight, method="OPTIONS") == "browser_origin"


def test_program_is_served():
    assert code(INGRESS, LOCAL, (b"user-agent", b"curl/8"), (b"content-type", b"application/json")) is None
    assert code(INGRESS, LOCAL, (b"sec-fetch-site", b"none"), method="GET", path=b"/restate/health") is None


def test_allowed_origin_is_served():
    assert code(OPEN, LOCAL, (b"origin", SHOP.encode()), (b"sec-fetch-site", b"cross-site")) is None
    assert code(OPEN, LOCAL, (b"origin", SHOP.encode()), method="OPTIONS") is None
    assert code(OPEN, LOCAL, (b"origin", SHOP.encode()), (b"origin", b"http://evil")) == "browser_origin"
    assert code(OPEN, LOCAL, (b"origin", b"null")) == "browser_origin"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "TRACE"])
def test_only_post_starts_handlers(method):
    assert code(INGRESS, LOCAL, method=method) == "method_not_allowed"


@pytest.mark.parametrize("path", [b"/restate/health", b"/restate/workflow/T/k/attach", b"/restate/invocation/i/output"])
def test_get_reads_results(path):
    assert code(INGRESS, LOCAL, method="GET", path=path) is None


@pytest.mark.parametrize(
    "path", [b"/restate/call/T/run", b"/restate/send/T/run", b"/restate/awakeables/a/resolve", b"/restate/healthy"]
)
def test_get_starts_nothing_under_restate(path):
    assert code(INGRESS, LOCAL, method="GET", path=path) == "method_not_allowed"


def test_admin_pages_call_their_own_api():
    own = (b"host", b"localhost:9070")
    assert code(ADMIN, own, (b"origin", b"http://localhost:9070"), (b"sec-fetch-site", b"same-origin")) is None
    assert code(ADMIN, own, (b"sec-fetch-site", b"same-origin"), method="GET", path=b"/services") is None
    assert code(ADMIN, own, (b"origin", b"http://localhost:8088")) == "browser_origin"
    assert code(ADMIN, own, (b"sec-fetch-site", b"same-site"), method="GET", path=b"/services") == "browser_origin"
    assert code(ADMIN, own, (b"sec-fetch-site", b"same-origin")) == "browser_origin"


def test_link_to_admin_pages_is_followed():
    click = ((b"host", b"localhost:9070"), (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate"))
    shown = (*click, (b"sec-fetch-dest", b"document"))
    assert code(ADMIN, *shown, method="GET", path=b"/ui/") is None
    assert code(ADMIN, *shown, method="GET", path=b"/services") == "browser_origin"
    assert code(ADMIN, *click, (b"sec-fetch-dest", b"iframe"), method="GET", path=b"/ui/") == "browser_origin"
    assert code(ADMIN, *shown, method="POST", path=b"/ui/") == "browser_origin"
    assert code(INGRESS, *shown, method="GET", path=b"/ui/") == "browser_origin"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "payments", "host.docker.internal", "a.localhost"])
def test_private_names_cannot_be_rebound(host):
    assert not is_rebindable(host)


@pytest.mark.parametrize("host", ["evil.example.com", "localhost.evil.com", "127.0.0.1.nip.io", "internal.evil.com"])
def test_public_names_can_be_rebound(host):
    assert is_rebindable(host)


@pytest.mark.parametrize("host", ["api.example.com:8080", "http://api.example.com", "", "a b", "API.example.com"])
def test_rules_refuse_unusable_host(host):
    with pytest.raises(ConfigurationError, match="not a host name"):
        BrowserRules(hosts=frozenset({host}))
