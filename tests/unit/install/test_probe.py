"""Health commands are judged by how they end, whatever else the system lacks."""

import tempfile

import pytest

from overhaul.install.health import Answer
from overhaul.install.probe import run_probe


def test_what_a_command_prints_last_is_kept() -> None:
    assert run_probe(["/bin/sh", "-c", "echo well; exit 3"], timeout_s=60) == Answer(exit_code=3, output="well\n")


def test_a_command_is_judged_where_no_temporary_file_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")

    assert run_probe(["/bin/sh", "-c", "echo ill; exit 3"], timeout_s=60) == Answer(exit_code=3, output="")
    assert run_probe(["/bin/true"], timeout_s=60).exit_code == 0
