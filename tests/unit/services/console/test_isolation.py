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
from services.console.pages import render
from services.console.pages.isolation import SHOWN_ATTRIBUTES, Isolation
from services.console.people.roles import Role

from perdure._runtime.plain_text import is_visible

TEMPLATES = sorted(Path(render.__file__).parents[1].joinpath("templates").glob("*.html"))
HEBREW = "עדה"


class Places(HTMLParser):
    """Finds where marked expressions stand, by Python's own reader of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.filters: dict[int, str | None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside.append(tag)
        for name, value in attrs:
            self._note(value or "", "isolated_text" if name in SHOWN_ATTRIBUTES else None)
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


def places_of(source: str) -> list[str | None]:
    marked = re.sub(r"{#.*?#}", "", source, flags=re.DOTALL)
    marked = re.sub(r"{% block title %}(.*?){% endblock %}", r"<title>\1</title>", marked)
    marked = re.sub(r"<title><title>(.*?)</title>(.*?)</title>", r"<title>\1\2</title>", marked)
    marked = re.sub(r"{%.*?%}", "", marked, flags=re.DOTALL)
    count = iter(range(10_000))
    marked = re.sub(r"{{.*?}}(?!})", lambda _: f"EXPR{next(count)}E", marked, flags=re.DOTALL)
    places = Places()
    places.feed(marked)
    places.close()
    return [places.filters[number] for number in range(next(count))]


def filters_of(source: str) -> list[str | None]:
    environment = Environment(extensions=[Isolation], trim_blocks=True, lstrip_blocks=True, autoescape=True)
    environment.filters.update(render._environment.filters)
    own = {"isolated", "isolated_text", "editable"}
    return [
        node.name if isinstance(node, nodes.Filter) and node.name in own else None
        for output in environment.parse(source).find_all(nodes.Output)
        for node in output.nodes
        if not isinstance(node, nodes.TemplateData)
    ]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_each_expression_is_isolated_by_its_place(template: Path):
    source = template.read_text()
    assert filters_of(source) == places_of(source)


def rendered(source: str, **values: Any) -> str:
    environment = Environment(
        loader=DictLoader({"page.html": source}), extensions=[Isolation], autoescape=select_autoescape()
    )
    return environment.get_template("page.html").render(**values)


@given(st.text())
def test_no_text_leaves_its_element(text: str):
    page = rendered('<p title="{{ text }}">{{ text }}</p><textarea>{{ text | tojson }}</textarea>', text=text)
    attribute, content, area = re.fullmatch(  # type: ignore[union-attr]
        r'<p title="(.*?)">(.*?)</p><textarea>(.*?)</textarea>', page, re.DOTALL
    ).groups()
    for shown in (attribute.removeprefix("\u2068").removesuffix("\u2069"), content, area):
        assert "<" not in re.sub("</?bdi>", "", shown)
        assert all(is_visible(character) or character in "\n\t" for character in html.unescape(shown))
    assert content.isascii() or re.fullmatch("<bdi>[^<]*</bdi>", content)
    assert json.loads(html.unescape(area)) == text


def test_plain_values_stay_as_they_are():
    assert rendered("<b>{{ a }}</b> {{ b }}", a="ada@example.com", b=3) == "<b>ada@example.com</b> 3"


def test_addresses_and_hidden_values_come_back_unchanged():
    text = f"{HEBREW}\u202e"
    assert rendered('<input value="{{ text }}">', text=text) == f'<input value="{text}">'


@pytest.mark.parametrize("source", ["<script>{{ a }}", "<style>{{ a }}", "<p {{ a }}>", "<p class={{ a }}>"])
def test_expressions_in_dangerous_places_are_refused(source: str):
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


async def test_pages_isolate_names_groups_and_browsers(desk: Any):
    admin = f"{HEBREW}@example.com"
    token = await desk.add(admin, Role.ADMINISTRATOR, groups=(HEBREW,))
    await desk.parts.sessions.begin(admin, address="\u202e1.2.3.4", agent="\x1b[2J\x9b\u202eMozilla\u2066")
    async with desk.client(headers={"authorization": f"Bearer {token}"}) as client:
        for path in ("/people", "/account"):
            page = Page((await client.get(path)).text)
            assert page.broken == []
            assert {admin, HEBREW} <= set(page.bdi)
        assert r"\x1b[2J\x9b\u202eMozilla\u2066" in (await client.get("/account")).text


def test_a_decision_names_its_actor_isolated():
    receipt = SimpleNamespace(act="approve", actor=HEBREW, reason="12 \u202e34", status="approved")
    page = Page(render.fragment("_decided.html", receipt=receipt))
    assert page.bdi == [HEBREW]
    assert page.broken == []
    assert r"12 \u202e34" in render.fragment("_decided.html", receipt=receipt)
