import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest

from overhaul.cli.output import INTERRUPTED_EXIT_CODE, MissingExtraError, human_bytes, run
from overhaul.errors import DeviceError, NetworkError, OperatorError


def _outcome(raised: BaseException, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command that raises `raised`; return the exit code of the process."""

    @click.command()
    @click.option("--json", "_as_json", is_flag=True)
    @click.argument("_words", nargs=-1)
    def command(_as_json: bool, _words: tuple[str, ...]) -> None:
        raise raised

    monkeypatch.setattr(sys, "argv", ["overhaul", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(command)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_an_error_of_ours_is_one_sentence_and_its_familys_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _outcome(NetworkError("The net is down."), monkeypatch) == NetworkError.exit_code
    assert capsys.readouterr().err == "Error: The net is down.\n"


def test_with_json_an_error_is_a_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _outcome(NetworkError("The net is down."), monkeypatch, "--json") == NetworkError.exit_code
    assert msgspec.json.decode(capsys.readouterr().err) == {
        "error": "NetworkError",
        "message": "The net is down.",
        "retryable": True,
    }


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")

    assert _outcome(missing, monkeypatch) == MissingExtraError.exit_code
    assert "pip install 'overhaul[server]'" in capsys.readouterr().err


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError):
        _outcome(ModuleNotFoundError("No module named 'overhaul.typo'", name="overhaul.typo"), monkeypatch)


@pytest.mark.parametrize(
    ("words", "family"),
    [
        ("device update", DeviceError),
        ("kit install stick", DeviceError),
        ("sysupgrade install", DeviceError),
        ("kit export stick", OperatorError),
        ("publish device", OperatorError),
    ],
)
def test_what_the_system_refuses_is_one_sentence_to_who_must_act(
    words: str,
    family: type[DeviceError | OperatorError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/some/where")

    assert _outcome(full, monkeypatch, *words.split()) == family.exit_code
    told = capsys.readouterr().err
    assert told.startswith("Error: The system refused /some/where: No space left on device.")
    assert told.count("\n") == 1


def test_with_json_wrong_usage_is_a_document_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _outcome(click.UsageError("Missing this."), monkeypatch, "--json") == 2
    assert msgspec.json.decode(capsys.readouterr().err) == {
        "error": "UsageError",
        "message": "Missing this.",
        "retryable": False,
    }


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_output_is_no_bug(unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from overhaul.cli import main; main()", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )

    assert done.returncode == OperatorError.exit_code
    assert b"Traceback" not in done.stderr


def test_an_interruption_says_that_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _outcome(KeyboardInterrupt(), monkeypatch) == INTERRUPTED_EXIT_CODE
    assert "run the command again to go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "expected"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (33_070_000, "33.1 MB"), (10**15, "1000.0 TB")]
)
def test_sizes_have_decimal_units(size: int, expected: str) -> None:
    assert human_bytes(size) == expected
