"""Releases as swupd versions: written once, shown by channel, and brought back when they are recalled."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from tests.swupd_keys import openssl, self_signed
from tests.swupd_trees import TIMESTAMP, Tree, lines, unpack, write_tree

from overhaul.content.tree import read_files, scan_tree
from overhaul.dialects.seam import Dialect, DialectSource, Opened
from overhaul.dialects.swupd.checking import check_tree
from overhaul.dialects.swupd.publish import SwupdDialect, UnsignedSwupdError
from overhaul.dialects.swupd.settings import SwupdSettings
from overhaul.progress import Silence
from overhaul.release.record import ReleaseId

SETTINGS = SwupdSettings(unsigned=True, fullfile_level=0, pack_level=0)


def release(version: str) -> ReleaseId:
    return ReleaseId(product="kiosk", variant="shop", arch="x86_64", version=version, build_id="1")


def opened(channel: str, *versions: str) -> Opened:
    return Opened(channel=channel, variant="shop", arch="x86_64", releases=tuple(map(release, versions)))


@dataclass(frozen=True)
class Publisher:
    """One product's dialect, with a directory to publish into."""

    place: Path
    dialect: SwupdDialect

    @property
    def web(self) -> Path:
        return self.place / "public/shop/x86_64"

    def publish(self, version: str, content: bytes) -> bool:
        """Publish a release with one file that differs; tell whether anything was written."""
        tree: Tree = {"/usr/lib/os-release": b"VERSION_ID=" + version.encode() + b"\n", "/usr/bin/tool": content}
        root = write_tree(self.place / "tree", tree)
        source = DialectSource(
            release=release(version), image=root, tree=root, entries=scan_tree(root), timestamp=TIMESTAMP
        )
        self.dialect.check(source.release)
        writer = self.dialect.writer(source, work=self.place, workers=2, progress=Silence())
        if writer is None:
            return False
        read_files(root, source.entries, [writer.take], workers=2)
        writer.write()
        return True

    def point(self, *channels: Opened) -> bool:
        return self.dialect.point(channels, recalled={})

    def shown(self, channel: str = "") -> int:
        root = self.web / "channels" / channel if channel else self.web
        return int((root / "version/format4/latest").read_text())

    def content(self, version: int, name: str) -> bytes:
        line = lines(self.web, version)[name]
        place = self.place / f"unpacked-{line.hash}"
        unpack(self.web / f"{line.version}/files/{line.hash}.tar", place)
        return (place / line.hash).read_bytes()


def publisher(place: Path, settings: SwupdSettings = SETTINGS) -> Publisher:
    ticks = itertools.count(TIMESTAMP)
    dialect = SwupdDialect(
        settings, product="kiosk", directory=place / "public", base=place, clock=lambda: float(next(ticks))
    )
    return Publisher(place, dialect)


def test_the_dialect_is_what_publishing_calls(tmp_path: Path) -> None:
    dialect: Dialect = publisher(tmp_path).dialect
    assert (dialect.name, dialect.needs_tree) == ("swupd", True)


def test_releases_become_versions_in_steps_of_ten_and_each_only_once(tmp_path: Path) -> None:
    one = publisher(tmp_path)
    assert one.publish("1.0", b"one")
    assert not (one.web / "version").exists()
    assert one.publish("1.1", b"two")
    assert not one.publish("1.0", b"one")
    assert sorted(path.name for path in one.web.iterdir() if path.name.isdigit()) == ["10", "20"]
    assert msgspec.json.decode((one.web / "20/release").read_bytes())["release"]["version"] == "1.1"
    assert one.content(20, "/usr/lib/os-release") == b"VERSION_ID=20\n"


def test_each_channel_shows_what_is_open_to_all_of_its_devices(tmp_path: Path) -> None:
    one = publisher(tmp_path)
    one.publish("1.0", b"one")
    one.publish("1.1", b"two")
    assert one.point(opened("stable", "1.0"), opened("beta", "1.0", "1.1"))
    assert (one.shown(), one.shown("stable"), one.shown("beta")) == (10, 10, 20)
    assert not one.point(opened("stable", "1.0"), opened("beta", "1.0", "1.1"))
    assert one.point(opened("stable", "1.0", "1.1"))
    assert one.shown() == 20


def test_nothing_is_shown_before_something_is_open(tmp_path: Path) -> None:
    one = publisher(tmp_path)
    assert not one.point(opened("stable"))
    one.publish("1.0", b"one")
    assert not one.point(opened("stable"), opened("beta", "9.9"))
    assert not (one.web / "version").exists()


def test_a_recalled_release_is_followed_by_the_good_one_under_a_higher_version(tmp_path: Path) -> None:
    one = publisher(tmp_path)
    one.publish("1.0", b"good")
    one.publish("1.1", b"bad")
    one.point(opened("stable", "1.0", "1.1"))
    assert one.shown() == 20
    assert one.point(opened("stable", "1.0"))
    assert one.shown() == 30
    assert one.content(30, "/usr/bin/tool") == b"good"
    assert one.content(30, "/usr/lib/os-release") == b"VERSION_ID=30\n"
    assert lines(one.web, 30)["/usr/bin/tool"].version == 30
    assert check_tree(one.web, certificate=None, progress=Silence()).problems == ()
    assert not one.point(opened("stable", "1.0"))
    one.publish("1.2", b"better")
    assert one.point(opened("stable", "1.0", "1.2"))
    assert one.shown() == 40


def test_settings_without_a_key_must_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnsignedSwupdError, match="unsigned = true"):
        publisher(tmp_path, SwupdSettings()).publish("1.0", b"one")


def test_pointers_and_moms_are_signed_with_the_products_key(tmp_path: Path) -> None:
    files = self_signed(tmp_path)
    settings = SwupdSettings(key=files.key.name, certificate=files.certificate.name, fullfile_level=0, pack_level=0)
    one = publisher(tmp_path, settings)
    one.publish("1.0", b"one")
    one.point(opened("stable", "1.0"), opened("beta", "1.0"))
    signed: Sequence[str] = (
        "10/Manifest.MoM", "version/format4/latest", "version/latest_version", "channels/beta/version/format4/latest",
    )  # fmt: skip
    for name in signed:
        openssl("smime", "-verify", "-inform", "DER", "-in", one.web / f"{name}.sig", "-content", one.web / name,
                "-binary", "-purpose", "any", "-CAfile", files.certificate)  # fmt: skip
    assert one.content(10, "/usr/share/clear/update-ca/Swupd_Root.pem") == files.certificate.read_bytes()
