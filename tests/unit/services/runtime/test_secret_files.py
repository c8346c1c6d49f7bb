from __future__ import annotations

import stat
from pathlib import Path

import pytest

from perdure.errors import ConfigurationError
from perdure.security.keys import PrivateKey
from services.database import database_url as parsed
from services.runtime.secret_files import ENVIRONMENT_FILES, database_url, make_secrets, read_environment_files
from services.runtime.settings import DATABASE_OWNERS

ALL = {
    "database/postgres_password",
    *(f"database/{name}_password" for name in DATABASE_OWNERS),
    *(f"{name}/environment" for name in DATABASE_OWNERS),
    "engine/request-identity.pem",
    "services/environment",
    "services/metrics_token",
    "links/links.pem",
    "console/issuer.pem",
    "grafana/admin_password",
}

KEYS = {
    "PERDURE_SECURITY_SIGNING_KEYS": "engine/request-identity.pem",
    "PERDURE_ISSUER_KEYS": "console/issuer.pem",
    "PERDURE_LINK_KEYS": "links/links.pem",
}


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_create_missing_secrets_once(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)

    assert {str(path.relative_to(tmp_path)) for path in made} == ALL == set(contents(tmp_path))
    first = contents(tmp_path)
    assert len(set(first.values())) == len(ALL)
    assert make_secrets(tmp_path) == []
    assert contents(tmp_path) == first

    (tmp_path / "grafana" / "admin_password").unlink()
    assert make_secrets(tmp_path) == [tmp_path / "grafana" / "admin_password"]
    assert contents(tmp_path) != first


def test_platforms_share_no_secrets(tmp_path: Path) -> None:
    make_secrets(tmp_path / "one")
    make_secrets(tmp_path / "two")

    assert not set(contents(tmp_path / "one").values()) & set(contents(tmp_path / "two").values())


def test_secret_files_are_readable_by_reader_only(tmp_path: Path) -> None:
    make_secrets(tmp_path)

    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ALL}
    for_groups = {name for name in ALL if name.endswith(("_password", "_token"))}
    assert modes == {name: 0o640 if name in for_groups else 0o600 for name in ALL}


def test_generated_secrets_match(tmp_path: Path) -> None:
    make_secrets(tmp_path)

    environment = {
        ENVIRONMENT_FILES: ":".join(str(tmp_path / name / "environment") for name in ("services", *DATABASE_OWNERS)),
        "PERDURE_SECURITY_METRICS_TOKEN": "my own",
    }
    read_environment_files(environment)

    assert environment.pop("PERDURE_SECURITY_METRICS_TOKEN") == "my own"
    for name in DATABASE_OWNERS:
        url = parsed(environment[f"PERDURE_{name.upper()}_DATABASE_URL"])
        assert url.password == (tmp_path / "database" / f"{name}_password").read_text()
        assert (url.host, url.username, url.database) == ("postgres", name, name)
    for variable, key in KEYS.items():
        assert environment[variable] == PrivateKey.load(tmp_path / key).public.id
    token = (tmp_path / "services" / "metrics_token").read_text()
    assert f"PERDURE_SECURITY_METRICS_TOKEN={token}\n" in (tmp_path / "services" / "environment").read_text()


def test_password_with_any_character_round_trips_in_url() -> None:
    password = "a/b@c:d%e?f#g"  # noqa: S105 - it opens nothing
    assert parsed(database_url("flights", password)).password == password


@pytest.mark.parametrize(("variable", "key"), KEYS.items())
def test_new_key_is_trusted_beside_old_key(tmp_path: Path, variable: str, key: str) -> None:
    def settings() -> dict[str, str]:
        environment = {ENVIRONMENT_FILES: str(tmp_path / "services" / "environment")}
        read_environment_files(environment)
        return environment

    make_secrets(tmp_path)
    before = settings()
    (tmp_path / key).unlink()

    make_secrets(tmp_path)

    new = PrivateKey.load(tmp_path / key).public.id
    assert settings() == {**before, variable: f"{new},{before[variable]}"}
    assert make_secrets(tmp_path) == []


def test_name_file_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "database").write_text("a file where a folder belongs")

    with pytest.raises(ConfigurationError, match=r"the secret .*postgres_password cannot be created: File exists"):
        make_secrets(tmp_path)


def test_no_files_mean_no_settings() -> None:
    environment: dict[str, str] = {}
    read_environment_files(environment)
    assert environment == {}


def test_ignore_blank_lines_and_comments(tmp_path: Path) -> None:
    (tmp_path / "some").write_text("# by hand\n\n A = b=c \nEMPTY=\n")
    environment = {ENVIRONMENT_FILES: str(tmp_path / "some")}
    read_environment_files(environment)
    assert (environment["A"], environment["EMPTY"]) == ("b=c", "")


def test_name_invalid_line_without_revealing_it(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_text("A=b\nhunter2-and-more\n")

    with pytest.raises(ConfigurationError, match="some, line 2: expected NAME=value") as caught:
        read_environment_files({ENVIRONMENT_FILES: str(path)})
    assert "hunter2" not in str(caught.value)

    with pytest.raises(ConfigurationError, match=r"other in PERDURE_ENVIRONMENT_FILES cannot be read"):
        read_environment_files({ENVIRONMENT_FILES: str(tmp_path / "other")})
