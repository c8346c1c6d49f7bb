from __future__ import annotations

import json
import platform
import threading
from importlib.resources import files
from pathlib import Path

import pytest

from perdure.engine import EngineConfig, EngineProcess, LocatedEngine, locate_engine
from perdure.engine.locate import server_version
from perdure.engine.npm import NPM_VERSION, platform_package
from perdure.errors import ConfigurationError, EngineError

SYSTEM_PATH = "/usr/bin:/bin"


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def server(path: Path, version: str) -> Path:
    return script(path, f'[ "$1" = --version ] && echo "restate-server {version}"')


def npm(folder: Path, body: str) -> Path:
    return script(folder / "npm", body)


def npm_that_installs(folder: Path, version: str = NPM_VERSION) -> Path:
    """Return a fake npm that records its runs and installs a server slowly."""
    target = f"node_modules/{platform_package()}/bin"
    return npm(
        folder,
        f"""echo "$@" >>{folder}/runs
        sleep 0.2
        mkdir -p {target}
        printf '#!/bin/sh\\necho restate-server {version}\\n' >{target}/restate-server
        chmod +x {target}/restate-server""",
    )


def locate(tmp_path: Path, *, path: Path | None = None, **variables: str) -> LocatedEngine:
    search = f"{path}:{SYSTEM_PATH}" if path else SYSTEM_PATH
    return locate_engine(tmp_path / "engine", {"PATH": search, **variables})


class TestNamedBinary:
    def test_configured_binary_precedes_path(self, tmp_path: Path):
        named = server(tmp_path / "mine" / "restate", "1.7.3")
        server(tmp_path / "bin" / "restate-server", "1.7.12")

        found = locate(tmp_path, path=tmp_path / "bin", RESTATE_SERVER_BIN=str(named))

        assert found == LocatedEngine(named, "RESTATE_SERVER_BIN", "1.7.3")
        assert str(found) == f"restate-server 1.7.3 from RESTATE_SERVER_BIN ({named})"

    @pytest.mark.parametrize("version", ["1.6.2", "1.8.0", "17.0.0", "2.7.1"])
    def test_refuse_configured_binary_of_another_version(self, tmp_path: Path, version: str):
        named = server(tmp_path / "restate-server", version)

        with pytest.raises(ConfigurationError, match=rf"RESTATE_SERVER_BIN is restate-server {version} .*needs 1\.7"):
            locate(tmp_path, RESTATE_SERVER_BIN=str(named))

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ("echo hello", "prints 'hello'"),
            ("echo 'restate-server 1.7.12'; exit 3", "is not a restate-server"),
            ("echo broken >&2; exit 1", "prints 'broken'"),
        ],
    )
    def test_refuse_configured_file_that_is_no_server(self, tmp_path: Path, body: str, expected: str):
        named = script(tmp_path / "restate-server", body)

        with pytest.raises(ConfigurationError, match="RESTATE_SERVER_BIN is not a restate-server") as refused:
            locate(tmp_path, RESTATE_SERVER_BIN=str(named))
        assert expected in str(refused.value)

    def test_refuse_missing_configured_file(self, tmp_path: Path):
        with pytest.raises(ConfigurationError, match=r"cannot run .*nothing: No such file or directory"):
            locate(tmp_path, RESTATE_SERVER_BIN=str(tmp_path / "nothing"))

    def test_refuse_configured_file_without_permission(self, tmp_path: Path):
        named = server(tmp_path / "restate-server", "1.7.12")
        named.chmod(0o644)

        with pytest.raises(ConfigurationError, match=r"cannot run .*: Permission denied"):
            locate(tmp_path, RESTATE_SERVER_BIN=str(named))


class TestOnThePath:
    def test_binary_on_path_precedes_npm(self, tmp_path: Path):
        found = server(tmp_path / "bin" / "restate-server", "1.7.12")

        assert locate(tmp_path, path=tmp_path / "bin") == LocatedEngine(found, "PATH", "1.7.12")

    @pytest.mark.parametrize(
        ("body", "reason"), [("echo restate-server 1.4.0", "has version 1.4.0"), ("exit 1", "prints no version")]
    )
    def test_unsupported_binary_on_path_is_skipped_with_note(self, tmp_path: Path, body: str, reason: str):
        other = script(tmp_path / "bin" / "restate-server", body)
        npm_that_installs(tmp_path / "bin")

        found = locate(tmp_path, path=tmp_path / "bin")

        assert found.source == "npm"
        assert found.version == NPM_VERSION
        assert found.notes == (f"{other} on the PATH {reason}, Perdure needs 1.7: using npm's instead",)

    def test_launcher_script_leads_to_native_binary(self, tmp_path: Path):
        """A server started by node would survive a kill of node."""
        modules = tmp_path / "lib" / "node_modules"
        launcher = script(modules / "@restatedev" / "restate-server" / "lib" / "index.js", "echo restate-server 1.7.12")
        native = server(modules / platform_package() / "bin" / "restate-server", "1.7.12")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "restate-server").symlink_to(launcher)

        assert locate(tmp_path, path=tmp_path / "bin").path == native


class TestRelativePaths:
    """The engine runs in its data folder, so that a relative path would name another file there."""

    @pytest.mark.parametrize("source", ["RESTATE_SERVER_BIN", "PATH", "npm"])
    def test_relative_path_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str):
        monkeypatch.chdir(tmp_path)
        variables = {"PATH": SYSTEM_PATH}
        if source == "npm":
            npm_that_installs(tmp_path / "bin")
            variables["PATH"] = f"{tmp_path / 'bin'}:{SYSTEM_PATH}"
        else:
            server(tmp_path / "bin" / "restate-server", NPM_VERSION)
            variables[source] = "bin/restate-server" if source == "RESTATE_SERVER_BIN" else f"bin:{SYSTEM_PATH}"

        found = locate_engine(Path("engine"), variables)

        assert (found.source, found.path.is_absolute()) == (source, True)
        assert EngineProcess(found.path.relative_to(tmp_path), EngineConfig(data_dir=tmp_path)).binary == found.path


class TestByNpm:
    def test_install_once_without_scripts(self, tmp_path: Path):
        npm_that_installs(tmp_path / "bin")

        first = locate(tmp_path, path=tmp_path / "bin")
        second = locate(tmp_path, path=tmp_path / "bin")

        assert first == second
        assert (first.source, first.version, first.notes) == ("npm", NPM_VERSION, ())
        assert server_version(first.path) == NPM_VERSION
        runs = (tmp_path / "bin" / "runs").read_text().splitlines()
        assert len(runs) == 1
        assert runs[0].startswith("ci --ignore-scripts --no-audit --no-fund")
        assert (tmp_path / "engine" / "package-lock.json").read_bytes() == shipped("package-lock.json")

    def test_concurrent_processes_install_once(self, tmp_path: Path):
        npm_that_installs(tmp_path / "bin")
        found: list[LocatedEngine] = []
        threads = [
            threading.Thread(target=lambda: found.append(locate(tmp_path, path=tmp_path / "bin"))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(found) == 4
        assert len(set(found)) == 1
        assert len((tmp_path / "bin" / "runs").read_text().splitlines()) == 1

    @pytest.mark.parametrize("left_over", ["", "#!/bin/sh\necho restate-server 1.7.1\n"], ids=["cut-off", "older"])
    def test_replace_incomplete_installation(self, tmp_path: Path, left_over: str):
        npm_that_installs(tmp_path / "bin")
        binary = tmp_path / "engine" / "node_modules" / platform_package() / "bin" / "restate-server"
        script(binary, "").write_text(left_over)

        assert locate(tmp_path, path=tmp_path / "bin").version == NPM_VERSION

    def test_missing_npm_is_reported(self, tmp_path: Path):
        (tmp_path / "empty").mkdir()

        with pytest.raises(EngineError, match="nor npm is on the PATH: install Node"):
            locate_engine(tmp_path / "engine", {"PATH": str(tmp_path / "empty")})

    def test_npm_errors_are_reported(self, tmp_path: Path):
        npm(
            tmp_path / "bin",
            """echo 'npm error code ENOTFOUND' >&2
            echo 'npm error network request failed' >&2
            echo 'npm error A complete log of this run can be found in: /somewhere' >&2
            exit 1""",
        )

        with pytest.raises(EngineError) as failed:
            locate(tmp_path, path=tmp_path / "bin")

        assert str(failed.value) == (
            f"npm failed to install restate-server {NPM_VERSION} into {tmp_path / 'engine'}: "
            "code ENOTFOUND; network request failed"
        )

    def test_unusable_installation_is_reported(self, tmp_path: Path):
        npm_that_installs(tmp_path / "bin", version="1.0.0")

        with pytest.raises(EngineError, match="does not run as that version"):
            locate(tmp_path, path=tmp_path / "bin")

    def test_unknown_machine_is_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")

        with pytest.raises(EngineError, match=r"npm has no restate-server for .* on riscv64: .* RESTATE_SERVER_BIN"):
            locate(tmp_path)


class TestTheLock:
    def test_version_is_pinned(self):
        lock = json.loads(shipped("package-lock.json"))
        manifest = json.loads(shipped("package.json"))

        assert manifest["dependencies"] == {"@restatedev/restate-server": NPM_VERSION}
        versions = {name: each["version"] for name, each in lock["packages"].items() if "@restatedev/" in name}
        assert len(versions) == 5
        assert set(versions.values()) == {NPM_VERSION}

    def test_lock_has_hashes_without_registry_addresses(self):
        lock = json.loads(shipped("package-lock.json"))
        packages = [each for name, each in lock["packages"].items() if name]

        assert all(each["integrity"].startswith("sha512-") for each in packages)
        assert b"http" not in shipped("package-lock.json")


def shipped(name: str) -> bytes:
    return files("perdure.engine.npm").joinpath(name).read_bytes()
