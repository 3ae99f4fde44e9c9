"""Trees as nasty as file systems allow, installed and updated: the device has exactly what the manifests say."""

import os
import shutil
import string
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.small_disk import small_disk
from tests.swupd_device import SwupdDevice, assert_system, expect, run
from tests.swupd_site import Packing, Site, Thing, Tree, file
from tests.tools import need

from overhaul.dialects.swupd.device.exits import Exit
from overhaul.host.processes import run as run_program

_NAMES = st.one_of(
    st.sampled_from(["a", "b", "c", " ", "-x", ".hidden", ".update.a", "ä", "\udcff", "x" * 255, "#", "a b", "%s"]),
    st.text(string.ascii_letters + "._- ~+=@", min_size=1, max_size=8).filter(lambda name: name not in {".", ".."}),
)
_MODES = st.sampled_from([0o644, 0o600, 0o4755, 0o2755, 0o000, 0o777])
_OWNERS = st.sampled_from([0, 1, 1000, 65534, 4_000_000_000])
_FILES = st.builds(
    Thing,
    st.just("F"),
    st.one_of(st.binary(max_size=300), st.sampled_from([0, 511, 512, 70_000]).map(bytes)),
    _MODES,
    _OWNERS,
    _OWNERS,
)
_TARGETS = st.sampled_from([b"a", b"/", b"../../..", b"nowhere", b"\xff" * 60])
_LINKS = st.builds(Thing, st.just("L"), _TARGETS, st.just(0o777), _OWNERS, _OWNERS)
_DIRECTORIES = st.builds(Thing, st.just("D"), st.just(b""), st.sampled_from([0o755, 0o1777, 0o700]), _OWNERS, _OWNERS)
_TREES = st.recursive(
    st.one_of(_FILES, _LINKS),
    lambda inner: st.tuples(_DIRECTORIES, st.dictionaries(_NAMES, inner, max_size=4)),
    max_leaves=12,
)
_ROOTS = st.dictionaries(_NAMES, _TREES, max_size=5)


def _flat(nested: dict[str, object], above: str) -> Iterator[tuple[str, Thing]]:
    for name, what in nested.items():
        if isinstance(what, Thing):
            yield f"{above}/{name}", what
        elif isinstance(what, tuple):
            yield f"{above}/{name}", what[0]
            yield from _flat(what[1], f"{above}/{name}")


@given(old=_ROOTS, new=_ROOTS, packs=st.booleans())
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_tree_becomes_any_other(old: dict[str, object], new: dict[str, object], packs: bool) -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        directory = Path(place)
        site = Site(directory / "www")
        # A file that lies where an earlier version had a directory, and the other way round, are the point of it.
        site.publish(10, {"os-core": dict(_flat(old, "/usr/lib"))}, packing=Packing(packs=packs))
        device = SwupdDevice.of(directory / "device", site)
        device.install()
        assert_system(device.root, site.tree())
        site.publish(20, {"os-core": dict(_flat(new, "/usr/lib"))}, packing=Packing(packs=packs))
        expect(device.run("update"), Exit.OK)
        assert_system(device.root, site.tree())
        expect(device.run("diagnose", "--picky"), Exit.OK)


_PLAIN = Packing(compress=bytes)
_BULK: Tree = {f"/usr/lib/bulk{number}": file(os.urandom(400_000)) for number in range(6)}


def test_files_called_like_our_temporary_ones_are_left_alone(tmp_path: Path) -> None:
    names = ["a", ".update.a", ".update..update.a", "b", ".update.b"]
    site = Site(tmp_path / "www")
    site.publish(10, {"os-core": {f"/usr/lib/{name}": file(f"old {name}") for name in names[:3]}})
    device = SwupdDevice.of(tmp_path / "device", site)
    device.install()
    changes = {"a": "new", "b": "new", ".update.b": "new"}
    site.publish(20, {"os-core": {f"/usr/lib/{name}": file(changes.get(name, f"old {name}")) for name in names}})
    expect(device.run("update"), Exit.OK)
    assert_system(device.root, site.tree())


@pytest.mark.parametrize("where", ["root", "state"])
def test_a_full_disk_ends_an_update_before_anything_changed_and_room_lets_it_go_on(tmp_path: Path, where: str) -> None:
    site = Site(tmp_path / "www")
    site.publish(10, {"os-core": {"/usr/lib/one": file("one")}})
    device = SwupdDevice.of(tmp_path / "device", site)
    with small_disk(device.directory / where, "3500k") as place:
        device.install()
        before = site.tree()
        site.publish(20, {"os-core": {"/usr/lib/one": file("two"), **_BULK}}, packing=_PLAIN)
        filling = place / "filling"
        filling.write_bytes(bytes(1_500_000))
        expect(device.run("update"), Exit.DISK_SPACE)
        # Also when nobody asked beforehand, the exact sizes are looked at before the system is touched.
        expect(device.run("update", "--skip-diskspace-check"), Exit.DISK_SPACE)
        allowed = frozenset({"/filling"})
        assert_system(device.root, before, allowed=allowed)
        assert device.version() == "10"
        filling.unlink()
        run_program(["mount", "-o", "remount,size=12m", place])
        expect(device.run("update"), Exit.OK)
        assert_system(device.root, site.tree())


def test_a_bundle_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    site = Site(tmp_path / "www")
    site.publish(10, {"bulk": _BULK}, packing=_PLAIN)
    device = SwupdDevice.of(tmp_path / "device", site)
    with small_disk(device.directory / "root", "2m"):
        device.install()
        expect(device.run("bundle-add", "bulk"), Exit.DISK_SPACE)
        assert_system(device.root, site.versions[-1].trees["os-core"])


def test_a_btrfs_system_is_updated_in_a_snapshot_that_becomes_the_default(tmp_path: Path) -> None:
    for program in ("mkfs.btrfs", "mount"):
        need(program)
    image = tmp_path / "image"
    with image.open("wb") as stream:
        stream.truncate(160 << 20)
    run_program(["mkfs.btrfs", "-q", image])
    site = Site(tmp_path / "www")
    site.publish(10, {"os-core": {"/usr/lib/one": file("one")}})
    place = tmp_path / "disk"
    place.mkdir()
    run_program(["mount", "-o", "loop", image, place])
    try:
        device = SwupdDevice.of(place, site)
        run_program(["btrfs", "subvolume", "create", device.root])
        device.install()
        site.publish(20, {"os-core": {"/usr/lib/one": file("two")}})
        expect(device.run("update", f"--staged={place}/systems"), Exit.OK)
        assert device.version() == "10"
        new = (place / "systems/current").resolve()
        assert_system(new, site.tree())
        shown = subprocess.run(["btrfs", "subvolume", "get-default", place], capture_output=True, check=True, text=True)
        assert shown.stdout.strip().endswith("systems/roots/20")
        expect(run("rollback", f"--staged={place}/systems"), Exit.OK)
        shown = subprocess.run(["btrfs", "subvolume", "get-default", place], capture_output=True, check=True, text=True)
        assert shown.stdout.strip().endswith("root")
    finally:
        run_program(["umount", place])
        shutil.rmtree(place)
