"""The commands `perdure keys` and `perdure actors`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perdure.cli.main import app
from perdure.errors import ConfigurationError
from perdure.security import ActorKey, PrivateKey, Role


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_ISSUER_KEY_FILE", raising=False)


def perdure(*words: str | Path) -> str:
    """Run a command and return its output."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_new_creates_private_file_and_prints_public_key(tmp_path: Path):
    file = tmp_path / "engine.pem"
    public = perdure("keys", "new", file).strip()
    assert PrivateKey.load(file).public.id == public
    assert perdure("keys", "show", file).strip() == public
    with pytest.raises(ConfigurationError, match="never overwritten"):
        perdure("keys", "new", file)


def test_show_prints_ids_of_encryption_keys(tmp_path: Path):
    first, both = tmp_path / "first.key", tmp_path / "both.key"
    made = perdure("keys", "new", "--encryption", first)
    assert f"PERDURE_SECURITY_ENCRYPTION_KEYS_FILE={first}" in made
    perdure("keys", "new", "--encryption", tmp_path / "second.key")
    both.write_text((tmp_path / "second.key").read_text() + first.read_text())
    both.chmod(0o600)
    lines = perdure("keys", "show", both).splitlines()
    assert [line.split("  ")[1] for line in lines] == ["encrypts and decrypts", "decrypts"]
    assert lines[1].split()[0] in made
    assert first.read_text().strip() not in made


def test_show_refuses_other_files_than_keys(tmp_path: Path):
    file = tmp_path / "notes.txt"
    file.write_text("no key\n")
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="not a private key in PEM"):
        perdure("keys", "show", file)


def test_rotation_has_two_steps(tmp_path: Path):
    file = tmp_path / "engine.pem"
    old = perdure("keys", "new", file).strip()
    with pytest.raises(ConfigurationError, match="first run: perdure keys rotate"):
        perdure("keys", "rotate", file, "--activate")
    said = perdure("keys", "rotate", file)
    new = PrivateKey.load(tmp_path / "engine.pem.next").public.id
    assert f"{old},{new}" in said
    assert PrivateKey.load(file).public.id == old
    with pytest.raises(ConfigurationError, match="exists; continue with"):
        perdure("keys", "rotate", file)
    assert f"Key {new} activated." in perdure("keys", "rotate", file, "--activate")
    assert PrivateKey.load(file).public.id == new
    assert PrivateKey.load(tmp_path / "engine.pem.previous").public.id == old
    assert not (tmp_path / "engine.pem.next").exists()
    perdure("keys", "rotate", file)
    with pytest.raises(ConfigurationError, match="exists from an earlier rotation"):
        perdure("keys", "rotate", file, "--activate")
    assert PrivateKey.load(file).public.id == new


def test_issue_creates_key_file_with_credential(tmp_path: Path):
    issuer, out = tmp_path / "issuer.pem", tmp_path / "ada.key"
    public = perdure("keys", "new", issuer).strip()
    said = perdure(
        *("actors", "issue", "Ada@Example.com", "--issuer", issuer, "-o", out),
        *("-r", "approver", "-r", "operator", "-g", "Finance", "--for", "12h"),
    )
    assert "issued for ada@example.com with the roles approver, operator, valid until" in said
    credential = ActorKey.load(out).credential
    assert (credential.actor, credential.issuer) == ("ada@example.com", public)
    assert credential.roles == (Role.APPROVER, Role.OPERATOR)
    assert credential.groups == ("finance",)
    assert (credential.expires_at - credential.issued_at).total_seconds() == 12 * 3600
    shown = perdure("actors", "show", out)
    assert credential.serial in shown
    assert "PRIVATE" not in shown
    assert json.loads(perdure("actors", "show", out, "--json")) == credential.model_dump(mode="json")


@pytest.mark.parametrize(
    ("actor", "lifetime", "reason"),
    [
        ("anyone", "90d", "is a reserved name"),
        ("ada", "2y", "is not a duration; write 15m"),
        ("ada", "0d", "expires_at must be later than issued_at"),
        ("ada", "9" * 400 + "d", "is not a duration; write 15m"),
        ("ada", "9999999d", "out of range"),
        ("ada", "-1d", "is not a duration; write 15m"),
    ],
)
def test_issue_refuses_invalid_arguments(tmp_path: Path, actor: str, lifetime: str, reason: str):
    issuer, out = tmp_path / "issuer.pem", tmp_path / "ada.key"
    perdure("keys", "new", issuer)
    with pytest.raises(ConfigurationError, match=reason):
        perdure("actors", "issue", actor, "--issuer", issuer, "-o", out, "-r", "viewer", f"--for={lifetime}")
    assert not out.exists()
