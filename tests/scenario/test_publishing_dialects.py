"""One publish, every dialect: what devices of atomupd, OSTree and swupd see follows from the same signed policies."""

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.dialect_tables import dialect_tables
from tests.tools import need

from overhaul.cli import cli
from overhaul.content import tree as content_tree

pytestmark = pytest.mark.xdist_group("publishing-dialects")


class Fleet:
    """A repository whose product speaks every dialect, and what devices of each see of it."""

    def __init__(self, directory: Path) -> None:
        self.repository = directory / "repo"
        self.tree = directory / "tree"
        self.public = self.repository / "store/public"
        self.overhaul("init", str(self.repository), "--demo-keys", "--product=kiosk")
        settings = self.repository / "overhaul.toml"
        tables = dialect_tables(directory)
        settings.write_text(settings.read_text().replace("castr = false", "castr = true") + tables)

    def overhaul(self, *arguments: str) -> str:
        result = CliRunner().invoke(cli, arguments, standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.output

    def write_tree(self, version: str) -> None:
        """Write a small root file system, another one for each version."""
        for folder in ("usr/bin", "usr/lib", "etc"):
            (self.tree / folder).mkdir(parents=True, exist_ok=True)
        (self.tree / "usr/lib/os-release").write_text(f"ID=kiosk\nVERSION_ID={version}\nBUILD_ID=20260501.1\n")
        for number in range(30):
            text = f"program {number}\n" * 500 + (version if number % 7 == 0 else "")
            (self.tree / f"usr/bin/program-{number}").write_text(text)
        for path in self.tree.rglob("*"):
            os.utime(path, (1_700_000_000, 1_700_000_000))

    def publish(self, version: str, *options: str) -> str:
        self.write_tree(version)
        return self.overhaul(
            "publish", str(self.tree), "--repository", str(self.repository), "--product=kiosk", "--variant=shop",
            "--arch=x86_64", "--channel=stable", f"--version={version}", "--build-id=20260501.1", "--no-delta",
            *options,
        )  # fmt: skip

    def seen_by_swupd(self) -> int:
        found = sorted((self.public / "swupd/kiosk").rglob("version/format*/latest"))
        versions = {int(path.read_text()) for path in found}
        assert len(versions) == 1, found
        return versions.pop()

    def seen_by_ostree(self) -> str:
        """Pull as a device does, with the real program; return the version of the tree it got."""
        place = self.repository / "pulled"
        url = f"file://{self.public}/ostree/kiosk"
        if not place.exists():
            self._ostree("init", f"--repo={place}", "--mode=bare-user")
            self._ostree("remote", "add", f"--repo={place}", "--no-gpg-verify", "kiosk", url)
        self._ostree("pull", f"--repo={place}", "kiosk", "kiosk/x86_64/shop/stable")
        shown = self._ostree("cat", f"--repo={place}", "kiosk:kiosk/x86_64/shop/stable", "/usr/lib/os-release")
        return dict(line.split("=", 1) for line in shown.splitlines())["VERSION_ID"]

    def ostree_commit(self) -> str:
        return self._ostree("rev-parse", f"--repo={self.public}/ostree/kiosk", "kiosk/x86_64/shop/stable").strip()

    def seen_by_atomupd(self) -> set[str]:
        """Return the versions that static update documents offer."""
        found: set[str] = set()
        for path in (self.public / "atomupd/kiosk").rglob("*.json"):
            document = json.loads(path.read_text())
            minor = document.get("minor", {}) if isinstance(document, dict) else {}
            found |= {candidate["image"]["version"] for candidate in minor.get("candidates", ())}
        return found

    @staticmethod
    def _ostree(*arguments: str) -> str:
        done = subprocess.run([need("ostree"), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    for program in ("rauc", "mksquashfs", "mkfs.ext4", "casync", "openssl"):
        need(program)
    return Fleet(tmp_path)


def test_a_release_reaches_every_dialect_in_one_run(fleet: Fleet) -> None:
    shown = fleet.publish("1.0")
    for dialect in ("swupd", "ostree", "atomupd"):
        assert f"{dialect:7} stored; devices see it" in shown
    assert fleet.seen_by_swupd() == 10
    assert fleet.seen_by_ostree() == "1.0"
    assert fleet.seen_by_atomupd() == {"1.0.0"}


def test_a_partly_rolled_out_release_is_hidden_from_who_cannot_read_policies(fleet: Fleet) -> None:
    fleet.publish("1.0")
    shown = fleet.publish("1.1", "--rollout=50")
    assert "when it is open to all" in shown
    assert (fleet.seen_by_swupd(), fleet.seen_by_ostree(), fleet.seen_by_atomupd()) == (10, "1.0", {"1.0.0"})

    fleet.overhaul(
        "channel",
        "rollout",
        "kiosk/shop/x86_64/1.1/20260501.1",
        "all",
        "--channel=stable",
        "--repository",
        str(fleet.repository),
    )
    assert fleet.seen_by_swupd() == 20
    assert fleet.seen_by_ostree() == "1.1"
    assert "1.1.0" in fleet.seen_by_atomupd()


def test_a_recall_gives_the_good_content_a_higher_name(fleet: Fleet) -> None:
    fleet.publish("1.0")
    fleet.publish("1.1")
    bad = fleet.ostree_commit()
    fleet.overhaul(
        "release", "recall", "kiosk/shop/x86_64/1.1/20260501.1", "--channel=stable", "--reason=it is bad",
        "--repository", str(fleet.repository),
    )  # fmt: skip
    assert fleet.seen_by_swupd() == 30
    assert fleet.ostree_commit() != bad
    assert fleet.seen_by_ostree() == "1.0"
    assert "1.1.0" not in fleet.seen_by_atomupd()


@pytest.mark.parametrize(("without", "kept"), [((), ["1.0", "1.1", "1.2"]), (("atomupd",), ["1.1", "1.2"])])
def test_a_channel_leaves_out_old_releases_unless_a_dialect_shows_them(
    fleet: Fleet, without: tuple[str, ...], kept: list[str]
) -> None:
    settings = fleet.repository / "overhaul.toml"
    text = re.sub(r"(?m)^listed_releases = .*$", "listed_releases = 2", settings.read_text())
    for dialect in without:
        text = re.sub(rf"(?s)\[products\.kiosk\.{dialect}\].*?(?=\n\[|\Z)", "", text)
    settings.write_text(text)
    for version in ("1.0", "1.1", "1.2"):
        fleet.publish(version)

    listed = json.loads(fleet.overhaul("channel", "list", "--json", "--repository", str(fleet.repository)))
    [policy] = [channel["policy"] for channel in listed if channel["channel"] == "stable"]
    assert sorted(entry["version"] for entry in policy["entries"]) == kept
    assert (fleet.seen_by_swupd(), fleet.seen_by_ostree()) == (30, "1.2")
    assert fleet.seen_by_atomupd() == (set() if without else {"1.1.0", "1.2.0"})
    fleet.overhaul(
        "release", "recall", "kiosk/shop/x86_64/1.2/20260501.1", "--channel=stable", "--reason=it is bad",
        "--repository", str(fleet.repository),
    )  # fmt: skip
    assert fleet.seen_by_ostree() == "1.1"


def test_publishing_again_changes_nothing(fleet: Fleet) -> None:
    fleet.publish("1.0")
    before = _bytes_below(fleet.public)
    assert "already" in fleet.publish("1.0")
    assert _bytes_below(fleet.public) == before


def test_keeping_the_repository_small_and_sound_leaves_the_trees_of_dialects_alone(fleet: Fleet) -> None:
    fleet.publish("1.0")
    before = _bytes_below(fleet.public)
    for _ in range(2):
        fleet.overhaul("repository", "prune", "--grace-days=0", "--repository", str(fleet.repository))
    report = json.loads(fleet.overhaul("repository", "verify", "--json", "--repository", str(fleet.repository)))
    assert (report["findings"], report["unreferenced"]) == ([], [])
    after = _bytes_below(fleet.public)
    dialects = ("atomupd/", "ostree/", "swupd/")
    assert {path: data for path, data in after.items() if path.startswith(dialects)} == {
        path: data for path, data in before.items() if path.startswith(dialects)
    }
    assert fleet.seen_by_ostree() == "1.0"


def test_each_file_of_the_tree_is_read_once_for_all_dialects(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[bytes] = Counter()
    real_open = os.open

    def counting(path: bytes, flags: int) -> int:
        opened[path] += 1
        return real_open(path, flags)

    monkeypatch.setattr(content_tree, "os", _Os(counting))
    fleet.publish("1.0")
    monkeypatch.undo()
    assert len(opened) == 31
    assert set(opened.values()) == {1}


class _Os:
    """The module `os` with another `open`."""

    def __init__(self, opening: object) -> None:
        self.open = opening

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


def _bytes_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "/tmp/" not in str(path.relative_to(directory))
    }
