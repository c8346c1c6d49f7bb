"""Writes docs/reference/api from the docstrings of public names; `--check` compares instead."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import perdure

FOLDER: Final = Path(__file__).parent / "api"
NOTE: Final = "Generated from docstrings by `make reference`."
PACKAGES: Final = {
    "perdure.approvals": [
        "perdure.approvals.service ApprovalsConfig definitions",
        "perdure.approvals.request",
        "perdure.approvals.notifications",
    ],
    "perdure.callers": ["perdure.callers"],
    "perdure.engine": ["perdure.engine", "perdure.engine.admin"],
    "perdure.errors": ["perdure.errors", "perdure.error_mapping"],
    "perdure.schedules": ["perdure.schedules"],
    "perdure.security": ["perdure.security"],
    "perdure.serving": ["perdure.serving", "perdure.saga.hosting"],
    "perdure.sql": ["perdure.sql"],
    "perdure.testing": ["perdure.testing", "perdure.testing.plugin restate_fixture"],
}
"""Pages of other names than those of `perdure`, with the modules, and possibly the names, that they describe."""

_SECTION: Final = re.compile(r"^(Args|Returns|Yields|Raises|Example):\n((?:(?:    .*)?\n)*)", re.MULTILINE)
_ENTRY: Final = re.compile(r"^(\*{0,2}[\w.]+): ", re.MULTILINE)
_TITLES: Final = {"Args": "Arguments"}


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    entries = {heading: [(name, getattr(perdure, name)) for name in names] for heading, names in groups().items()}
    documented = {id(value) for names in entries.values() for _, value in names}
    for page, modules in PACKAGES.items():
        found = [entry for module in modules for entry in public_names(*module.split())]
        entries[page] = [(name, value) for name, value in found if id(value) not in documented]
        documented |= {id(value) for _, value in entries[page]}
    index = ["# Public names", NOTE, "Names under a heading without a module are imported from `perdure`."]
    written = {}
    for heading, names in entries.items():
        if not names:
            continue
        file = re.sub(r"\W+", "-", heading.lower().removeprefix("perdure.")) + ".md"
        file = f"module-{file}" if heading in PACKAGES else file
        parts = [f"# {heading}", NOTE, *(part for name, value in names for part in describe(name, value, documented))]
        written[file] = "\n\n".join(parts) + "\n"
        index.append(f"**[{heading}]({file})**: " + ", ".join(f"`{name}`" for name, _ in names))
    return {"README.md": "\n\n".join(index) + "\n", **written}


def groups() -> dict[str, list[str]]:
    """Return the names of `perdure` by the comments that group its ``__all__``."""
    block = inspect.getsource(perdure).partition("__all__ = [")[2]
    headings = [*re.finditer(r"^    # (.+)$", block, re.MULTILINE)]
    ends = [*(heading.start() for heading in headings), len(block)]
    return {
        heading[1]: re.findall(r'"(\w+)"', block[start:end])
        for heading, (start, end) in zip(headings, pairwise(ends), strict=True)
    }


def public_names(path: str, *names: str) -> Iterator[tuple[str, Any]]:
    """Yield the given classes and functions of a module, or those of its ``__all__``, or those that it defines."""
    module = importlib.import_module(path)
    exported = names or getattr(module, "__all__", ())
    for name in exported or vars(module):
        value = getattr(module, name)
        is_own = bool(exported) or getattr(value, "__module__", None) == path
        if not name.startswith("_") and is_own and (inspect.isclass(value) or inspect.isfunction(value)):
            yield name, value


def describe(name: str, value: Any, documented: set[int]) -> Iterator[str]:
    """Yield the Markdown paragraphs of a name and its methods."""
    yield f"## `{name}`"
    if value.__module__.startswith("perdure"):
        yield f"```python\nfrom {_home(name, value)} import {name}\n\n{signature(value)}\n```"
    yield from paragraphs(value)
    if not inspect.isclass(value):
        return
    if issubclass(value, Enum):
        yield "Values: " + ", ".join(f"`{member.name}`" for member in value)
    foreign = [base for base in value.__mro__ if not base.__module__.startswith("perdure")]
    for base in value.__mro__:
        if base in foreign:
            continue
        if base is not value and id(base) in documented:
            if any(not member.startswith("_") and inspect.getdoc(each) for member, each in vars(base).items()):
                yield f"It also has the members of `{base.__name__}`."
            continue
        for member, function in vars(base).items():
            function = getattr(function, "__func__", function)  # noqa: PLW2901 - of a class method
            is_inherited = any(
                member in vars(other) for other in value.__mro__ if not other.__module__.startswith("perdure")
            )
            if member.startswith("_") or is_inherited or not inspect.getdoc(function):
                continue
            if isinstance(function, property):
                yield f"### `{name}.{member}` (property)"
            elif inspect.isfunction(function):
                yield f"### `{name}.{member}`\n\n```python\n{signature(function)}\n```"
            else:
                continue
            yield from paragraphs(function)


def _home(name: str, value: Any) -> str:
    """Return the shortest module that exports a name."""
    parts = value.__module__.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        if name in getattr(importlib.import_module(package), "__all__", ()):
            return package
    return str(value.__module__)


def signature(value: Any) -> str:
    """Return the signature as the source has it."""
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]
    if isinstance(node, ast.ClassDef):
        constructor = next((each for each in node.body if getattr(each, "name", "") == "__init__"), None)
        if not isinstance(constructor, ast.FunctionDef):
            bases = ", ".join(map(ast.unparse, node.bases))
            return _wrapped(f"class {node.name}", bases, "")
        return _wrapped(f"class {node.name}", _arguments(constructor), "")
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)  # noqa: S101 - functions and classes only
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return _wrapped(f"{prefix} {node.name}", _arguments(node), returns)


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return re.sub(r"^(self|cls)(, |$)", "", ast.unparse(function.args))


def _wrapped(start: str, arguments: str, returns: str) -> str:
    line = f"{start}({arguments}){returns}" if arguments or start.startswith(("def", "async")) else start
    return "\n".join(textwrap.wrap(line, 110, subsequent_indent="    ", break_long_words=False))


def paragraphs(value: Any) -> Iterator[str]:
    """Yield the Markdown paragraphs of a docstring."""
    text = (inspect.getdoc(value) or "") + "\n"
    description = _SECTION.sub("", text).strip()
    if description:
        yield re.sub(r"((?:^    .*\n?)+)", _code, description, flags=re.MULTILINE)
    for found in _SECTION.finditer(text):
        body = textwrap.dedent(found[2]).strip("\n")
        if found[1] == "Example":
            yield f"```python\n{body}\n```"
        else:
            listed = _ENTRY.sub(r"- `\1`: ", re.sub(r"\n\s+", " ", body))
            yield f"**{_TITLES.get(found[1], found[1])}**\n\n{listed}"


def _code(found: re.Match[str]) -> str:
    return f"```python\n{textwrap.dedent(found[1]).rstrip()}\n```\n"


def main(arguments: list[str]) -> int:
    """Write or compare the pages and return the exit code."""
    current = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    expected = pages()
    if arguments == ["--check"]:
        stale = sorted(name for name in current | expected if current.get(name) != expected.get(name))
        if stale:
            print(f"docs/reference/api is not current ({', '.join(stale)}): run make reference")  # noqa: T201
        return int(bool(stale))
    for name in current.keys() - expected.keys():
        (FOLDER / name).unlink()
    for name, text in expected.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
