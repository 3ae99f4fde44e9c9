"""What a builder must fulfil for the unmodified clients, judged by our client: the real builder, the real client.

A staging directory with a tree for each bundle is processed version by version, and a device follows.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.swupd_device import SwupdDevice, expect, run, seen
from tests.swupd_site import BUILT_AT, Thing, shared_keys

from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.packing import Compression
from overhaul.dialects.swupd.signing import load_signer
from overhaul.dialects.swupd.storage import Storage
from overhaul.progress import Silence

_BIG = bytes(range(256)) * 64
_GROUPS = """[os-core]
group=os-core
[editors]
group=editors
[games]
group=games
"""


class Vendor:
    """Who builds the system: a staging directory and the trees of the version in the making."""

    def __init__(self, directory: Path) -> None:
        self.storage = Storage(directory)
        self.keys = shared_keys()
        signer = load_signer(key=self.keys.key, certificate=self.keys.certificate)
        self.options = BuildOptions(signer=signer, content_url=f"file://{self.storage.web}",
                                    version_url=f"file://{self.storage.web}")  # fmt: skip
        directory.mkdir(parents=True)
        (directory / "groups.ini").write_text(_GROUPS)
        self.version = 0

    def tree(self, bundle: str) -> Path:
        """Return the tree of a bundle in the version that is being prepared."""
        return self.storage.images / str(self.version) / bundle

    def begin(self) -> None:
        """Prepare the next version as a copy of the last."""
        last, self.version = self.version, self.version + 10
        place = self.storage.images / str(self.version)
        if last:
            shutil.copytree(self.storage.images / str(last), place, symlinks=True)
        else:
            for bundle in ("os-core", "editors", "games"):
                (place / bundle / "usr/bin").mkdir(parents=True)
            (place / "noship").mkdir()
            (place / "noship/games-includes").write_text("editors\n")

    def publish(self) -> None:
        """Build what was prepared."""
        release = self.tree("os-core") / "usr/lib/os-release"
        release.parent.mkdir(parents=True, exist_ok=True)
        release.write_text(f"NAME=Test\nVERSION_ID={self.version}\n")
        self.storage.process(self.version, options=self.options, timestamp=BUILT_AT, progress=Silence())

    def write(self, path: str, content: bytes | str, *, bundle: str = "os-core", mode: int = 0o644) -> None:
        """Write a file of the version that is being prepared."""
        place = self.tree(bundle) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        place.chmod(mode)

    def published(self, pattern: str) -> list[Path]:
        """Return files of the newest version."""
        return sorted((self.storage.web / str(self.version)).glob(pattern))


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    return _with_first_version(tmp_path / "vendor")


def _with_first_version(directory: Path) -> Vendor:
    vendor = Vendor(directory)
    vendor.begin()
    vendor.write("usr/bin/tool", _BIG, mode=0o755)
    vendor.write("usr/bin/su", "setuid", mode=0o4755)
    vendor.write("usr/bin/old", "old")
    vendor.write("usr/lib/becomes-link", "a file")
    vendor.write("usr/lib/kernel/vmlinuz-1", "kernel 1")
    vendor.write("usr/share/clear/versionstamp", f"{BUILT_AT}\n")
    vendor.write("etc/hosts", "localhost")
    vendor.write("var/lib/state", "state")
    vendor.write("usr/bin/ed", "ed 1", bundle="editors", mode=0o755)
    vendor.write("usr/lib/shared", "shared", bundle="editors")
    vendor.write("usr/bin/game", "game 1", bundle="games", mode=0o755)
    vendor.publish()
    return vendor


def _second(vendor: Vendor) -> None:
    vendor.begin()
    vendor.write("usr/bin/tool", _BIG[:7000] + b"changed" + _BIG[7000:], mode=0o755)
    (vendor.tree("os-core") / "usr/bin/old").unlink()
    (vendor.tree("os-core") / "usr/lib/kernel/vmlinuz-1").unlink()
    vendor.write("usr/lib/kernel/vmlinuz-2", "kernel 2")
    (vendor.tree("os-core") / "usr/lib/becomes-link").unlink()
    (vendor.tree("os-core") / "usr/lib/becomes-link").symlink_to("../bin/tool")
    vendor.write("usr/lib/new/deep/file", "deep")
    vendor.write("etc/hosts", "the vendor's new hosts")
    vendor.write("var/lib/state", "the vendor's new state")
    vendor.write("usr/bin/ed", "ed 2", bundle="editors", mode=0o755)
    vendor.publish()


def _device(vendor: Vendor, directory: Path, *words: str) -> SwupdDevice:
    directory.mkdir(parents=True, exist_ok=True)
    url = f"file://{vendor.storage.web}"
    device = SwupdDevice(directory, url, vendor.keys.certificate, [f"--format={vendor.options.format}"])
    device.install(*words)
    return device


def _assert_follows(device: SwupdDevice, vendor: Vendor, *bundles: str, except_for: frozenset[str]) -> None:
    """Check that the device has all objects of the vendor's trees; `except_for` are paths it may differ in."""
    for bundle in ("os-core", *bundles):
        root = os.fsencode(vendor.tree(bundle))
        for folder, names, files in os.walk(root):
            for name in (*names, *files):
                path = (folder + b"/" + name)[len(root) :]
                if os.fsdecode(path) not in except_for:
                    assert seen(os.fsencode(device.root) + path) == seen(root + path), path


@pytest.mark.parametrize("packs", [True, False])
def test_a_system_is_installed_from_zero_packs_and_from_single_files(
    vendor: Vendor, tmp_path: Path, packs: bool
) -> None:
    if not packs:
        for pack in vendor.published("pack-*"):
            pack.unlink()
    device = _device(vendor, tmp_path / "device", "--bundles=games")
    _assert_follows(device, vendor, "editors", "games", except_for=frozenset())
    expect(device.run("diagnose", "--picky"), Exit.OK)


_WAYS: dict[str, tuple[Compression, tuple[str, ...]]] = {
    "packs and manifest deltas": ("smallest", ()),
    "no packs": ("smallest", ("pack-*",)),
    "no manifest deltas": ("smallest", ("Manifest-*-delta-*",)),
    "neither": ("smallest", ("pack-*", "Manifest-*-delta-*")),
    "zstd": ("zstd", ()),
    "zstd without packs": ("zstd", ("pack-*",)),
    "xz without packs": ("xz", ("pack-*",)),
    "gzip without packs": ("gzip", ("pack-*",)),
}


@pytest.mark.parametrize("way", _WAYS)
def test_an_update_arrives_in_every_way_it_can_come(vendor: Vendor, tmp_path: Path, way: str) -> None:
    device = _device(vendor, tmp_path / "device", "--bundles=games")
    expect(device.run("check-update"), Exit.NO)
    (device.root / "etc/hosts").write_text("mine")
    (device.root / "var/lib/state").write_text("mine")
    compression, withheld = _WAYS[way]
    vendor.options = replace(vendor.options, compression=compression)
    _second(vendor)
    for pattern in withheld:
        for path in vendor.published(pattern):
            path.unlink()
    ran = expect(device.run("check-update", "--quiet"), Exit.OK)
    assert ran.lines == ["20"]
    ran = expect(device.run("update", "--verbose"), Exit.OK)
    assert ("0 from deltas" in ran.out) == ("pack-*" in withheld)
    assert device.version() == "20"
    alone = frozenset({"/etc/hosts", "/var/lib/state"})
    _assert_follows(device, vendor, "editors", "games", except_for=alone)
    assert seen(os.fsencode(device.root / "etc/hosts")) == Thing("F", b"mine")
    assert seen(os.fsencode(device.root / "var/lib/state")) == Thing("F", b"mine")
    assert not (device.root / "usr/bin/old").exists()
    assert (device.root / "usr/lib/kernel/vmlinuz-1").read_text() == "kernel 1"
    expect(device.run("diagnose"), Exit.OK)
    expect(device.run("check-update"), Exit.NO)


def test_damage_is_found_and_repaired(vendor: Vendor, tmp_path: Path) -> None:
    device = _device(vendor, tmp_path / "device")
    _second(vendor)
    expect(device.run("update"), Exit.OK)
    (device.root / "usr/bin/tool").write_bytes(b"damaged")
    (device.root / "usr/bin/su").unlink()
    (device.root / "usr/share/stray").write_text("stray")
    expect(device.run("diagnose", "--picky"), Exit.NO)
    expect(device.run("repair", "--picky"), Exit.OK)
    expect(device.run("diagnose", "--picky"), Exit.OK)
    _assert_follows(device, vendor, except_for=frozenset({"/etc/hosts", "/var/lib/state"}))


def test_bundles_come_and_go_with_what_they_include(vendor: Vendor, tmp_path: Path) -> None:
    device = _device(vendor, tmp_path / "device")
    expect(device.run("bundle-add", "games"), Exit.OK)
    assert (device.root / "usr/bin/ed").exists()
    expect(device.run("bundle-remove", "editors"), Exit.REQUIRED_BUNDLE)
    expect(device.run("bundle-remove", "games"), Exit.OK)
    assert not (device.root / "usr/bin/game").exists()
    assert (device.root / "usr/lib/shared").read_text() == "shared"
    expect(device.run("diagnose"), Exit.OK)


def test_bad_signatures_and_files_end_an_update_and_missing_packs_do_not(vendor: Vendor, tmp_path: Path) -> None:
    device = _device(vendor, tmp_path / "device")
    _second(vendor)
    for path in vendor.published("pack-*"):
        path.unlink()
    mom = vendor.published("Manifest.MoM.tar")[0]
    good = mom.read_bytes()
    plain = vendor.published("Manifest.MoM")[0]
    mom.unlink()
    plain_bytes = plain.read_bytes()
    plain.write_bytes(plain_bytes.replace(b"timestamp:\t1", b"timestamp:\t2"))
    expect(device.run("update"), Exit.MOM)
    mom.write_bytes(good)
    plain.write_bytes(plain_bytes)
    files = vendor.published("files/*.tar")
    kept = {path: path.read_bytes() for path in files}
    for path, other in zip(files, [*files[1:], files[0]], strict=True):
        path.write_bytes(kept[other])
    ran = device.run("update")
    assert ran.code is Exit.NO
    assert "bad server data" in ran.errors
    assert device.version() == "10"
    for path in files:
        path.write_bytes(kept[path])
    expect(device.run("update"), Exit.OK)
    assert device.version() == "20"


def test_a_file_is_found_in_bundles_that_are_not_installed(vendor: Vendor, tmp_path: Path) -> None:
    device = _device(vendor, tmp_path / "device")
    assert expect(device.run("search-file", "bin/game", "--quiet"), Exit.OK).lines == ["[games]", "/usr/bin/game"]


def test_a_device_follows_a_vendor_into_a_new_format(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = _device(vendor, tmp_path / "device")
    vendor.begin()
    vendor.write("usr/bin/tool", "tool of format 5")
    vendor.options = replace(vendor.options, format=5)
    vendor.publish()
    again: list[str] = []

    def go_on() -> Exit:
        again.append(device.version())
        return device.run("update").code

    monkeypatch.setattr("overhaul.dialects.swupd.device.updating.reexecute", go_on)
    expect(device.run("update"), Exit.OK)
    assert again == ["30"]
    assert device.version() == "30"
    assert (device.root / "usr/bin/tool").read_text() == "tool of format 5"
    expect(device.run("diagnose"), Exit.OK)


def test_an_ostro_device_follows_a_repository_of_the_first_format(tmp_path: Path) -> None:
    vendor = Vendor(tmp_path / "vendor")
    vendor.options = replace(vendor.options, format=3, xattrs=True)
    vendor.begin()
    vendor.write("usr/bin/tool", _BIG, mode=0o755)
    vendor.write("etc/conf", "1")
    os.setxattr(vendor.tree("os-core") / "usr/bin/tool", "user.label", b"trusted")
    vendor.publish()
    directory = tmp_path / "device"
    directory.mkdir()
    url = f"file://{vendor.storage.web}"
    device = SwupdDevice(directory, url, vendor.keys.certificate, ["--format=3", "--xattrs", "--stateful"])
    device.install()
    assert os.getxattr(device.root / "usr/bin/tool", "user.label") == b"trusted"
    vendor.begin()
    vendor.write("usr/bin/tool", _BIG + b"more", mode=0o755)
    os.setxattr(vendor.tree("os-core") / "usr/bin/tool", "user.label", b"trusted")
    vendor.write("etc/conf", "2")
    vendor.publish()
    ran = expect(device.run("update", "--verbose"), Exit.OK)
    assert "0 from deltas" not in ran.out
    assert (device.root / "etc/conf").read_text() == "2"
    assert os.getxattr(device.root / "usr/bin/tool", "user.label") == b"trusted"
    expect(device.run("verify", "-V", "--log=debug"), Exit.OK)


@pytest.fixture
def quick_vendor() -> Iterator[Vendor]:
    """A vendor in memory: between a version file and its signature lie no syncs of a busy disk, which a client would
    wait for only so long."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        yield _with_first_version(Path(place) / "vendor")


def test_clients_follow_while_a_builder_builds(quick_vendor: Vendor, tmp_path: Path) -> None:
    vendor = quick_vendor
    devices = [_device(vendor, tmp_path / name) for name in ("one", "two")]
    failures: list[object] = []

    def build() -> None:
        for number in range(3):
            vendor.begin()
            vendor.write("usr/bin/tool", _BIG + str(number).encode(), mode=0o755)
            vendor.publish()

    builder = threading.Thread(target=_noting(build, failures))
    builder.start()
    # Processes of their own: two clients of one state would wait for each other, two devices never.
    while builder.is_alive():
        running = [_start(device) for device in devices]
        for process in running:
            _out, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    builder.join()
    assert not failures
    for device in devices:
        expect(device.run("update"), Exit.OK)
        assert device.version() == "40"
        _assert_follows(device, vendor, except_for=frozenset())


def _noting(act: Callable[[], None], failures: list[object]) -> Callable[[], None]:
    def acting() -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    return acting


def _start(device: SwupdDevice) -> subprocess.Popen[bytes]:
    program = "from overhaul.dialects.swupd.device.cli import main; main()"
    options = [f"--path={device.root}", f"--statedir={device.state}", f"--url={device.url}",
               f"--certpath={device.certificate}", "--no-progress", *device.options]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", program, "update", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_the_configured_system_needs_no_options(vendor: Vendor, tmp_path: Path) -> None:
    device = _device(vendor, tmp_path / "device")
    _second(vendor)
    words = [f"--path={device.root}", f"--statedir={device.state}", f"--certpath={device.certificate}", "--no-scripts"]
    expect(run("update", *words), Exit.OK)
    assert device.version() == "20"
