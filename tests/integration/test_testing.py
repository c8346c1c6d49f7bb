"""`perdure.testing`: module fixtures, modes, scaled time, and cleanup of killed sessions."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from uuid import uuid4

import pytest
import restate as sdk

from perdure import (
    ControlPlaneService,
    DataPlaneContext,
    DataPlaneService,
    IngressClient,
    Orchestration,
    SagaConfig,
    ServiceClient,
    WorkflowTimer,
    handler,
    race_promise_with_timeout,
)
from perdure._runtime.time_scale import scaled
from perdure.approvals import service as approvals
from perdure.approvals.request import OnTimeout
from perdure.errors import IngressError, Refused
from perdure.retry import RetryPolicy
from perdure.saga import hosting
from perdure.testing import Mode, RestateEnvironment
from perdure.testing.plugin import RestateServers, restate_fixture
from tests.support import Recording, eventually

pytestmark = pytest.mark.restate_modes("all")

greeter = DataPlaneService("TestingGreeter", public=True)
sleeper = sdk.Service("TestingSleeper")


@greeter.handler()
async def greet(ctx: DataPlaneContext, name: str) -> str:
    return f"hello {name}"


delayed: Recording = Recording()


@handler(sleeper)
async def note(ctx: sdk.Context, key: str) -> None:
    delayed.add(key)


@handler(sleeper)
async def send_later(ctx: sdk.Context, key: str) -> None:
    await ServiceClient(ctx, note).send(key, delay=timedelta(hours=1))


@handler(sleeper)
async def sleep(ctx: sdk.Context, duration: timedelta) -> bool:
    await ctx.sleep(scaled(duration))
    await WorkflowTimer(ctx).sleep(duration)
    return True


patient = ControlPlaneService(
    "TestingPatient", saga=SagaConfig(max_attempts=2, initial_delay=timedelta(hours=1), max_delay=timedelta(hours=2))
)
compensated: list[str] = []


@patient.compensation()
async def undo(ctx: sdk.Context, key: str) -> None:
    compensated.append(key)
    if compensated.count(key) == 1:
        raise Refused("not now", 503)


@patient.main()
async def wait(cp: Orchestration) -> None:
    """Wait an hour for a promise, an approval, between two attempts of a step, and in the rollback."""

    async def fail(_key: str) -> None:
        raise Refused("never", 503)

    await race_promise_with_timeout(cp.ctx, "promise", timedelta(hours=1), str)
    assert not await cp.await_human_approval(
        cp.key, timedelta(hours=1), approvers=["ada"], on_timeout=OnTimeout.REJECT, remind_every=timedelta(minutes=20)
    )
    retry = RetryPolicy(timedelta(hours=1), max_interval=timedelta(hours=1), max_attempts=2)
    await cp.step("fails", fail, cp.key, compensate=undo.bind(cp.key), retry=retry)


services = restate_fixture(greeter, sleeper, patient, *hosting.definitions(), *approvals.definitions())
seen: dict[Mode, str] = {}


async def test_module_services_are_served_per_mode(services: RestateEnvironment, restate_mode: Mode):
    assert services.mode is restate_mode
    seen[restate_mode] = services.url
    async with IngressClient(services.ingress) as ingress:
        assert await ingress.call(greet, "ada") == "hello ada"


async def test_module_services_are_shared_by_tests(services: RestateEnvironment):
    assert seen[services.mode] == services.url
    async with IngressClient(services.ingress) as ingress:
        assert await ingress.call(greet, "bob") == "hello bob"


async def test_test_may_serve_further_services(services: RestateEnvironment, restate):
    extra = DataPlaneService("TestingExtra", public=True)

    @extra.handler()
    async def shout(ctx: DataPlaneContext, text: str) -> str:
        return text.upper()

    env = await restate.serve(extra)
    assert (env.mode, env.server) == (services.mode, services.server)
    async with IngressClient(env.ingress) as ingress:
        assert await ingress.call(shout, "ada") == "ADA"


@pytest.mark.restate_modes("request_response")
async def test_mark_selects_modes(services: RestateEnvironment):
    assert services.mode is Mode.REQUEST_RESPONSE


async def test_time_scale_shortens_an_hour(services: RestateEnvironment, time_scale):
    time_scale(360_000)
    async with IngressClient(services.ingress) as ingress:
        assert await ingress.call(sleep, timedelta(hours=1))
        key = str(uuid4())
        with pytest.raises(IngressError, match="step 'fails' failed: never") as failed:
            await ingress.call(wait, key=key)
        assert failed.value.metadata["rollback"] == "rolled_back"
        assert compensated.count(key) == 2
        await ingress.send(note, f"{key} from outside", delay=timedelta(hours=1))
        await ingress.call(send_later, f"{key} from a handler")
        await eventually(
            lambda: {f"{key} from outside", f"{key} from a handler"} <= set(delayed.all()), what="delayed sends"
        )


def write_session(folder: Path, test: str, *options: str) -> list[str]:
    """Write a test module into a folder and return the command that runs it."""
    (folder / "conftest.py").write_text('pytest_plugins = ["perdure.testing.plugin"]\n', encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n", encoding="utf-8")
    (folder / "test_session.py").write_text(dedent(test), encoding="utf-8")
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *options, str(folder)]


def environment(servers: RestateServers) -> dict[str, str]:
    """Return an environment with the engine of this session."""
    binary = servers.for_mode(Mode.HTTP2).engine.binary
    return {**os.environ, "RESTATE_SERVER_BIN": str(binary)}


ALL = ["http2", "request_response", "always_suspending"]
MARKED = """
    import pytest

    async def test_one(restate): ...

    @pytest.mark.restate_modes("request_response")
    async def test_two(restate): ...

    @pytest.mark.restate_modes("all")
    async def test_three(restate): ...
"""


@pytest.mark.parametrize(
    ("options", "modes"),
    [
        (["-o", "perdure_modes=http2"], {"one": ["http2"], "two": ["request_response"], "three": ALL}),
        (["-o", "perdure_modes=http2", "--restate-modes=all"], {"one": ALL, "two": ["request_response"]}),
        (["--restate-modes=http2"], {"one": ["http2"], "two": ["NOTSET"], "three": ["http2"]}),
        (["--restate-modes=vqueues"], {"one": ["vqueues"], "two": ["NOTSET"], "three": ["vqueues"]}),
    ],
    ids=["setting", "option-all", "option", "next-engine"],
)
def test_setting_mark_and_option_select_modes(tmp_path, restate_servers, options, modes):
    command = write_session(tmp_path, MARKED, "--collect-only", *options)
    env = environment(restate_servers)
    listed = subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout
    found = re.findall(r"::test_(\w+)\[(\w+)\]", listed)
    assert {name: [mode for each, mode in found if each == name] for name in modes} == modes


def test_timeout_names_open_invocations(tmp_path, restate_servers):
    test = """
        import pytest
        import restate as sdk
        from perdure import IngressClient, handler
        from perdure.testing.plugin import restate_fixture

        printer = sdk.Service("TimeoutPrinter")

        @handler(printer)
        async def print_page(ctx: sdk.Context) -> None:
            raise OSError("out of paper")

        printing = restate_fixture(printer)

        @pytest.mark.restate_modes("http2")
        async def test_never_ends(printing):
            async with IngressClient(printing.ingress) as ingress:
                await ingress.call(print_page)
    """
    command = write_session(tmp_path, test, "-o", "perdure_timeout=3")
    run = subprocess.run(command, env=environment(restate_servers), capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout
    assert "the test did not end within 3 s (perdure_timeout). Invocations not ended:" in run.stdout
    described = r"TimeoutPrinter/print_page \(inv_\w+\): \S+, [1-9]\d* failed attempts, .*out of paper"
    assert re.search(described, run.stdout)


@pytest.mark.parametrize("limit", ["-1", "soon", "inf", "nan"])
def test_reject_invalid_timeout(tmp_path, restate_servers, limit):
    command = write_session(tmp_path, MARKED, "-o", f"perdure_timeout={limit}", "--restate-modes=http2")
    run = subprocess.run(command, env=environment(restate_servers), capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert f"the setting perdure_timeout must be a number of seconds, or 0 for no limit; got '{limit}'" in run.stderr


def test_reject_unknown_mode(tmp_path, restate_servers):
    command = write_session(tmp_path, MARKED, "--collect-only", "--restate-modes=http3")
    env = environment(restate_servers)
    refused = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert (
        "'http3' is not a valid Mode; the modes are http2, request_response, always_suspending, vqueues,"
        in refused.stdout
    )


def test_documentation_example_runs_as_printed(tmp_path, restate_servers):
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "testing.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"```(?:python|ini)\n# (\S+)\n(.*?)```", text, flags=re.DOTALL))
    assert sorted(files) == ["conftest.py", "orders.py", "pytest.ini", "test_greeter.py", "test_orders.py"]
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-k", "greeter or http2"]
    env = {**environment(restate_servers), "COLUMNS": "120"}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    documented = re.findall(r"^test_greeter.py::.*PASSED$", text, flags=re.MULTILINE)
    assert re.findall(r"^(test_greeter.py::\S+ PASSED)", run.stdout, flags=re.MULTILINE) == documented, run.stdout
    assert len(documented) == 3
    assert run.returncode == 0, run.stdout
    assert len(re.findall(r"^test_orders.py::\S+\[http2\] PASSED", run.stdout, flags=re.MULTILINE)) == 2, run.stdout


async def test_killed_session_leaves_no_engine_or_data(tmp_path, restate_servers):
    test = """
        import threading
        from pathlib import Path

        import pytest

        @pytest.mark.restate_modes("http2")
        async def test_never_ends(restate):
            engine = restate.server.engine
            info = Path(__file__).with_name("info")
            info.with_suffix(".new").write_text(f"{engine.pid} {engine.config.admin_port} {engine.config.data_dir}")
            info.with_suffix(".new").rename(info)
            threading.Event().wait()
    """
    session = subprocess.Popen(  # noqa: ASYNC220 - starts quickly
        write_session(tmp_path, test),
        env=environment(restate_servers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        async def info() -> str | None:
            assert session.poll() is None, "the session has ended"
            return (tmp_path / "info").read_text() if (tmp_path / "info").exists() else None

        pid, port, data = (await eventually(info, what="the engine")).split()
        assert accepts_connections(int(port))
        assert exists(data)
    finally:
        os.kill(session.pid, signal.SIGKILL)
        session.wait()

    async def removed() -> bool:
        return not accepts_connections(int(port)) and not is_alive(int(pid)) and not exists(str(Path(data).parent))

    await eventually(removed, what="the end of the engine and its data")


def accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def exists(path: str) -> bool:
    return Path(path).exists()


def is_alive(pid: int) -> bool:
    """Return whether a process runs and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # Linux only; other systems reap orphans at once
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
