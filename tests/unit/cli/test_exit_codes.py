"""The reference of exit codes is what the classes say."""

from pathlib import Path

from overhaul.agent.outcomes import ExitCode
from overhaul.cli.exit_codes import exit_code_page
from overhaul.errors import OverhaulError

PAGE = Path(__file__).parents[3] / "docs/reference/exit-codes.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == exit_code_page()


def test_no_two_meanings_share_a_code() -> None:
    families = [family for family in OverhaulError.__subclasses__() if family.__module__ == "overhaul.errors"]
    codes = [family.exit_code for family in families] + [code.value for code in ExitCode] + [1, 2, 130]
    assert len(codes) == len(set(codes))


def test_every_answer_has_a_meaning() -> None:
    assert all(code.meaning.endswith(".") for code in ExitCode)
