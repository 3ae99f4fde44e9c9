"""What processes that share a cache of Debian's archives leave to one another."""

from pathlib import Path

import pytest

from overhaul.builds.debian_archives import DebianArchives
from overhaul.builds.recipe import Recipe
from overhaul.host.locks import locked

RECIPE = Recipe(builder="debian", distribution="debian", version="bookworm", target="amd64", profile="p")


class GaveUpError(Exception):
    """Whoever waited for the archives does so no longer."""


class Impatient:
    """Follows until it has had to wait once."""

    def __init__(self) -> None:
        self.asked = 0

    def log(self, text: str) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Give up the second time."""
        self.asked += 1
        if self.asked == 2:
            raise GaveUpError


def test_what_the_apt_of_another_process_reads_is_not_written_meanwhile(tmp_path: Path) -> None:
    read = [tmp_path / "bookworm-amd64" / name for name in ("apt.conf", "etc/sources.list")]
    for path in read:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("as the other one wrote it")

    with locked(tmp_path / "lock", purpose="a test"), pytest.raises(GaveUpError):
        DebianArchives(directory=tmp_path).resolve(RECIPE, Impatient(), download=False)

    assert [path.read_text() for path in read] == ["as the other one wrote it"] * 2
