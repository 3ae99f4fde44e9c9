"""The grammar of the command line, as getopt_long has it, and of configuration files."""

from pathlib import Path

import pytest

from overhaul.dialects.swupd.device import cli
from overhaul.dialects.swupd.device.config import read_config, settings_of
from overhaul.dialects.swupd.device.errors import WrongUsageError
from overhaul.dialects.swupd.device.options import Option, Values, from_file, parse

_TABLE = (
    Option("quick", "q"),
    Option("quiet"),
    Option("path", "p", "PATH"),
    Option("version", "V", "VERSION", is_optional=True),
)


@pytest.mark.parametrize(
    ("words", "values", "rest"),
    [
        (["a", "-q", "b"], {"quick": True}, ["a", "b"]),
        (["--path", "x"], {"path": "x"}, []),
        (["--path=x=y"], {"path": "x=y"}, []),
        (["-px"], {"path": "x"}, []),
        (["-p", "-q"], {"path": "-q"}, []),
        (["-qp", "x"], {"quick": True, "path": "x"}, []),
        (["--quic"], {"quick": True}, []),
        (["--pa=x"], {"path": "x"}, []),
        (["--quick=false"], {"quick": False}, []),
        (["--", "-q"], {}, ["-q"]),
        (["-"], {}, ["-"]),
        (["-V"], {"version": True}, []),
        (["-V", "10", "-q"], {"version": "10", "quick": True}, []),
        (["-V", "latest"], {"version": "latest"}, []),
        (["-V", "--quick"], {"version": True, "quick": True}, []),
        (["-p", "1", "-p", "2"], {"path": "2"}, []),
    ],
)
def test_words_become_options_and_the_rest(words: list[str], values: Values, rest: list[str]) -> None:
    assert parse(words, _TABLE) == (values, rest)


@pytest.mark.parametrize("words", [["--qui"], ["--none"], ["-z"], ["-qz"], ["--path"], ["-p"], ["--quick=perhaps"]])
def test_what_does_not_fit_is_refused_in_a_sentence(words: list[str]) -> None:
    with pytest.raises(WrongUsageError, match="--help"):
        parse(words, _TABLE)


def test_later_files_and_sections_of_commands_win(tmp_path: Path) -> None:
    for name, text in (("a", "[GLOBAL]\npath=1\nquick=true\n[update]\npath=2\n"), ("b", ";x\n\n[GLOBAL]\npath=3\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config").write_text(text)
    sections = read_config([tmp_path / "a", tmp_path / "none", tmp_path / "b"])
    assert from_file(settings_of(sections, "update"), _TABLE, source="x") == {"path": "2", "quick": True}
    assert from_file(settings_of(sections, "diagnose"), _TABLE, source="x") == {"path": "3", "quick": True}


@pytest.mark.parametrize("text", ["key=value\n", "[GLOBAL]\nnosigcheck\n", "[GLOBAL]\na = b\n", "[GLO BAL]\n"])
def test_a_line_that_is_no_setting_is_not_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(WrongUsageError, match=r"[Ll]ine"):
        read_config([tmp_path])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_and_options_that_do_not_collide(name: str) -> None:
    table = cli.table(name)
    letters = [option.short for option in table if option.short]
    names = [option.name for option in table]
    assert len(set(letters)) == len(letters)
    assert len(set(names)) == len(names)
    assert cli.run([name, "--help"]) == 0
