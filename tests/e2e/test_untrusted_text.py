"""Untrusted text in a browser, which must not reorder the words around it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from playwright.sync_api import Browser

from services.console.rendering import fragment

# The letters of the sentence after the name, with their horizontal positions.
_POSITIONS = """() => {
  const walker = document.createTreeWalker(document.querySelector("p"), NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node !== null; node = walker.nextNode()) {
    for (let at = 0; at < node.data.length; at++) {
      const range = document.createRange();
      range.setStart(node, at);
      range.setEnd(node, at + 1);
      const box = range.getBoundingClientRect();
      if (box.width > 0) found.push([node.data[at], box.left]);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("actor", ["עדה", "ada\u202e", "\u2067ada", "ada\u2066", "عمر"])
def test_name_does_not_reorder_sentence(browser: Browser, actor: str):
    receipt = SimpleNamespace(action="approve", actor=actor, reason="12 of 34", status="approved")
    page = browser.new_page()
    try:
        page.set_content(fragment("_decided.html", receipt=receipt))
        letters = page.evaluate(_POSITIONS)
    finally:
        page.close()
    ours = [(letter, left) for letter, left in letters if letter.isascii()]
    text = "".join(letter for letter, _ in ours)
    sentence = ours[text.index(": 12 of 34. Status: approved.") :]
    assert [left for _, left in sentence] == sorted(left for _, left in sentence)
