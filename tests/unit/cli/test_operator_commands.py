"""`overhaul operator`: accounts and the audit log, as a person or a script uses them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.published import PublishedRepository

from overhaul.cli import cli
from overhaul.errors import InputError
from overhaul.server.operators.audit import DamagedAuditError

PASSWORD = "a sentence nobody else would write"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return PublishedRepository(tmp_path / "repository").directory


def _run(repository: Path, *words: str, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ["operator", *words, "--repository", str(repository)], input=given)


def test_accounts_are_made_listed_changed_and_removed(repository: Path) -> None:
    assert "Nobody may sign in yet" in _run(repository, "list").output
    made = _run(repository, "add", "ada", "--role", "operator", "--password-stdin", given=PASSWORD + "\n")
    assert made.output == "ada may sign in as operator.\n"
    assert _run(repository, "password", "ada", "--password-stdin", given=PASSWORD[::-1]).exit_code == 0
    assert _run(repository, "role", "ada", "viewer").output == "ada is viewer now.\n"
    (listed,) = json.loads(_run(repository, "list", "--json").output)
    assert (listed["name"], listed["role"], listed["has_password"]) == ("ada", "viewer", True)
    assert "ada" in _run(repository, "list").output
    assert _run(repository, "remove", "ada").exit_code == 0
    told = json.loads(_run(repository, "audit", "--json").output)
    assert [record["act"] for record in told["records"]] == [
        "operator remove", "operator role", "operator password", "operator add",
    ]  # fmt: skip
    assert {record["address"] for record in told["records"]} == {"local"}
    assert PASSWORD not in json.dumps(told)


def test_a_password_is_never_an_argument_and_is_asked_for_only_on_a_terminal(repository: Path) -> None:
    asked = _run(repository, "add", "bob")
    assert isinstance(asked.exception, InputError)
    assert "--password-stdin" in str(asked.exception)
    assert isinstance(_run(repository, "add", "bob", "--password-stdin", given="short").exception, InputError)
    assert isinstance(_run(repository, "add", "bob", "--password-stdin", given=b"\xff" * 20).exception, InputError)
    assert isinstance(_run(repository, "add", "bob", "--password-stdin", given="x" * 5000).exception, InputError)
    assert "--password TEXT" not in _run(repository, "add", "--help").output


def test_a_changed_audit_log_is_refused(repository: Path) -> None:
    _run(repository, "add", "eve", "--password-stdin", given=PASSWORD)
    _run(repository, "remove", "eve")
    path = repository / "server/audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"eve", b"bob", 1))
    assert isinstance(_run(repository, "audit").exception, DamagedAuditError)
    path.write_bytes(whole)
    shown = _run(repository, "audit", "--limit", "1").output
    assert "operator remove" in shown
    digest = shown.split()[-1]
    assert _run(repository, "audit", "--holds", digest).exit_code == 0
    assert isinstance(_run(repository, "audit", "--holds", "0" * 64).exception, DamagedAuditError)
