from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import DictLoader, Environment, TemplateSyntaxError, nodes, select_autoescape

from perdure._runtime.plain_text import is_visible
from services.console import rendering
from services.console.auth.roles import Role
from services.console.text_isolation import VISIBLE_ATTRIBUTES, Isolation

TEMPLATES = sorted(Path(rendering.__file__).parent.rglob("templates/*.html"))
HEBREW = "עדה"


class Positions(HTMLParser):
    """Finds the positions of marked expressions with Python's HTML parser."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.filters: dict[int, str | None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside.append(tag)
        for name, value in attrs:
            self._note(value or "", "isolated_text" if name in VISIBLE_ATTRIBUTES else None)
        if tag in ("input", "meta", "link", "rect", "path"):
            self.inside.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        within = self.inside[-1] if self.inside else ""
        special = {"title": "isolated_text", "option": "isolated_text", "textarea": "editable"}
        self._note(data, special.get(within, "isolated"))

    def _note(self, text: str, expected: str | None) -> None:
        for number in re.findall(r"EXPR(\d+)E", text):
            self.filters[int(number)] = expected


def expected_filters(source: str) -> list[str | None]:
    marked = re.sub(r"{#.*?#}", "", source, flags=re.DOTALL)
    marked = re.sub(r"{% block title %}(.*?){% endblock %}", r"<title>\1</title>", marked)
    marked = re.sub(r"<title><title>(.*?)</title>(.*?)</title>", r"<title>\1\2</title>", marked)
    marked = re.sub(r"{%.*?%}", "", marked, flags=re.DOTALL)
    count = iter(range(10_000))
    marked = re.sub(r"{{.*?}}(?!})", lambda _: f"EXPR{next(count)}E", marked, flags=re.DOTALL)
    positions = Positions()
    positions.feed(marked)
    positions.close()
    return [positions.filters[number] for number in range(next(count))]


def filters_of(source: str) -> list[str | None]:
    environment = Environment(extensions=[Isolation], trim_blocks=True, lstrip_blocks=True, autoescape=True)
    environment.filters.update(rendering._environment.filters)
    own = {"isolated", "isolated_text", "editable"}
    return [
        node.name if isinstance(node, nodes.Filter) and node.name in own else None
        for output in environment.parse(source).find_all(nodes.Output)
        for node in output.nodes
        if not isinstance(node, nodes.TemplateData)
    ]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_expressions_are_filtered_by_position(template: Path):
    source = template.read_text()
    assert filters_of(source) == expected_filters(source)


def rendered(source: str, **values: Any) -> str:
    environment = Environment(
        loader=DictLoader({"page.html": source}), extensions=[Isolation], autoescape=select_autoescape()
    )
    return environment.get_template("page.html").render(**values)


@given(st.text())
def test_text_stays_in_its_element(text: str):
    page = rendered('<p title="{{ text }}">{{ text }}</p><textarea>{{ text | tojson }}</textarea>', text=text)
    attribute, content, area = re.fullmatch(  # type: ignore[union-attr]
        r'<p title="(.*?)">(.*?)</p><textarea>(.*?)</textarea>', page, re.DOTALL
    ).groups()
    for shown in (attribute.removeprefix("\u2068").removesuffix("\u2069"), content, area):
        assert "<" not in re.sub("</?bdi>", "", shown)
        assert all(is_visible(character) or character in "\n\t" for character in html.unescape(shown))
    assert content.isascii() or re.fullmatch("<bdi>[^<]*</bdi>", content)
    assert json.loads(html.unescape(area)) == text


def test_ascii_values_are_unchanged():
    assert rendered("<b>{{ a }}</b> {{ b }}", a="ada@example.com", b=3) == "<b>ada@example.com</b> 3"


def test_hidden_values_are_unchanged():
    text = f"{HEBREW}\u202e"
    assert rendered('<input value="{{ text }}">', text=text) == f'<input value="{text}">'


@pytest.mark.parametrize("source", ["<script>{{ a }}", "<style>{{ a }}", "<p {{ a }}>", "<p class={{ a }}>"])
def test_reject_expressions_in_dangerous_positions(source: str):
    with pytest.raises(TemplateSyntaxError):
        rendered(source, a="x")


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.bdi: list[str] = []
        self.broken: list[str] = []
        self._within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within.append(tag)
        self.broken += [f"{name}={value}" for name, value in attrs if "<bdi" in (value or "")]

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._within[-1:] == ["bdi"]:
            self.bdi.append(data)
        elif self._within[-1:] not in (["title"], ["option"], ["textarea"]) and not data.isascii():
            self.broken += re.findall("[\u0590-\u05ff].*", data)
        self.broken += [repr(each) for each in data if not is_visible(each) and each not in "\n\t"]


async def test_pages_isolate_untrusted_text(console: Any):
    admin = f"{HEBREW}@example.com"
    token = await console.add(admin, Role.ADMINISTRATOR, groups=(HEBREW,))
    await console.components.sessions.start(admin, address="\u202e1.2.3.4", agent="\x1b[2J\x9b\u202eMozilla\u2066")
    async with console.client(headers={"authorization": f"Bearer {token}"}) as client:
        for path in ("/users", "/account"):
            page = Page((await client.get(path)).text)
            assert page.broken == []
            assert {admin, HEBREW} <= set(page.bdi)
        assert r"\x1b[2J\x9b\u202eMozilla\u2066" in (await client.get("/account")).text


def test_fragment_isolates_actor():
    receipt = SimpleNamespace(action="approve", actor=HEBREW, reason="12 \u202e34", status="approved")
    page = Page(rendering.fragment("_decided.html", receipt=receipt))
    assert page.bdi == [HEBREW]
    assert page.broken == []
    assert r"12 \u202e34" in rendering.fragment("_decided.html", receipt=receipt)
