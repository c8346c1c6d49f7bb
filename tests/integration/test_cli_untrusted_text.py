"""Untrusted text from a request reaches the terminal escaped."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from uuid import uuid4

import httpx
import pytest
import restate as sdk

from perdure import handler
from perdure._runtime.plain_text import escape_invisible, is_visible
from perdure.schedules import definitions
from tests.command_line import run_perdure

TEXTS = {
    "path": "reads [/srv/in] each night",
    "type": "why: amount [type=missing, input_value={}]",
    "style": "all of [red] the warehouse, [bold]never[/bold] :smile:",
    "link": "see [link=http://elsewhere.example]the manual[/link]",
    "escape": "\x1b[2J\x1b[31mowned\x9b1m\b\b",
    "forged line": "fine\nname  other\r\u2028x",
    "override": "\u202eowned\u2066\u200b",
}


def jobs() -> sdk.Service:
    service = sdk.Service("TextJobs")

    @handler(service)
    async def job(ctx: sdk.Context) -> None: ...

    return service


async def perdure(*words: str, ingress: str) -> tuple[int, str, str]:
    """Run `perdure` in this process, and return exit code, output and errors."""
    done = await asyncio.to_thread(run_perdure, *words, PERDURE_INGRESS_URL=ingress, COLUMNS="400")
    return done.returncode, done.stdout, done.stderr


async def perdure_process(*words: str, ingress: str) -> tuple[int, str, str]:
    """Run `perdure` as a process, whose arguments and output are bytes."""
    environment = {**os.environ, "PERDURE_INGRESS_URL": ingress, "COLUMNS": "400"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from perdure.cli.main import main; main()", *words),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.restate_modes("http2")
async def test_hostile_text_is_escaped(restate):
    env = await restate.serve(jobs(), *definitions())
    names = {name: f"{name.replace(' ', '-')}-{uuid4().hex[:8]}" for name in TEXTS}
    body = {"target": {"service": "TextJobs", "handler": "job"}, "every": "P1D", "actor": "ada@example.com"}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        for name, text in TEXTS.items():
            answer = await http.post(f"{env.ingress}/Schedules/{names[name]}/set", json={**body, "description": text})
            assert answer.status_code == 200, answer.text
            for field in () if all(map(is_visible, text)) else ("reason", "actor"):
                invalid = {**body, field: f"ada{text}"}
                refused = await http.post(f"{env.ingress}/Schedules/{names[name]}/set", json=invalid)
                assert refused.status_code == 400
                assert refused.json()["metadata"]["field"] == field
                assert "invisible character U+" in refused.json()["message"]
    for name, text in TEXTS.items():
        code, out, err = await perdure("schedules", "show", names[name], ingress=env.ingress)
        assert (code, err) == (0, "")
        assert all(is_visible(character) or character == "\n" for character in out)
        assert escape_invisible(text) in out
        code, out, _ = await perdure("schedules", "show", names[name], "--json", ingress=env.ingress)
        assert json.loads(out)["spec"]["description"] == text
        assert all(is_visible(character) or character == "\n" for character in out)


@pytest.mark.restate_modes("http2")
async def test_errors_with_hostile_text_are_escaped(restate):
    env = await restate.serve(jobs(), *definitions())
    code, out, err = await perdure_process("schedules", "show", "[red]nothing[/red]", ingress=env.ingress)
    assert (code, out) == (1, "")
    assert "[red]nothing[/red]" in err
    code, out, err = await perdure_process("schedules", "show", "\x1b[2J", ingress=env.ingress)
    assert (code, out) == (2, "")
    assert err == (
        "perdure: the argument '\\x1b[2J' must not contain the invisible character U+001B at position 1: remove it\n"
    )
