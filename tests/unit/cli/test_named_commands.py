"""Commands that messages and documents name are there: somebody in trouble will type them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

from overhaul.cli import cli

_ROOT = Path(__file__).parents[3]
_NAMED = re.compile(r"`(overhaul [a-z -]+)")


def _texts() -> Iterator[tuple[Path, str]]:
    for path in (*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md")):
        yield path, path.read_text()
    for path in (_ROOT / "src").rglob("*.py"):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)) if "`overhaul " in source else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


def _missing(words: list[str]) -> str:
    """Return the first word that names no command; empty when all do that must."""
    group: click.Command = cli
    for word in words:
        if not isinstance(group, click.Group):
            break
        found = group.get_command(click.Context(group), word)
        if found is None:
            return word
        group = found
    return ""


def test_a_name_of_no_command_is_noticed() -> None:
    assert _missing(["channel", "show"]) == "show"
    assert not _missing(["channel", "list"])
    assert not _missing(["publish", "rootfs"])


def test_every_command_that_is_named_is_there() -> None:
    named = {
        (str(path.relative_to(_ROOT)), " ".join(found[1].split()))
        for path, text in _texts()
        for found in _NAMED.finditer(text)
    }
    assert len(named) > 50
    assert not [(path, words) for path, words in sorted(named) if _missing(words.split()[1:])]
