"""The client against a repository that is written byte by byte: every command from the first installation on."""

from pathlib import Path

import pytest
from tests.swupd_device import SwupdDevice, assert_system, expect
from tests.swupd_site import Packing, Site, Tree, changed, directory, file, link

from overhaul.dialects.swupd.device.exits import Exit

BIG = bytes(range(256)) * 40

CORE: Tree = {
    "/usr/bin": directory(),
    "/usr/bin/tool": file(BIG, 0o755),
    "/usr/bin/old": file("old"),
    "/usr/bin/su": file("setuid", 0o4755),
    "/usr/lib/thing": file("thing"),
    "/usr/lib/kernel": directory(),
    "/usr/lib/kernel/vmlinuz-1": file("kernel 1"),
    "/usr/lib/short": link("thing"),
    "/usr/lib/empty": directory(0o1777),
    "/etc": directory(),
    "/etc/hosts": file("localhost"),
    "/var": directory(),
    "/var/lib": directory(),
}
EDITORS: Tree = {"/usr/bin": directory(), "/usr/bin/ed": file("ed 1", 0o755)}


def second(core: Tree) -> Tree:
    """Return the next version of the core: one of everything that can happen to a path."""
    new = dict(core)
    new["/usr/bin/tool"] = changed(core["/usr/bin/tool"], BIG[:5000] + b"new" + BIG[5000:])
    del new["/usr/bin/old"], new["/usr/lib/kernel/vmlinuz-1"]
    new["/usr/lib/kernel/vmlinuz-2"] = file("kernel 2")
    new["/usr/lib/thing"] = link("short-of-it")
    new["/usr/lib/new"] = directory(0o750)
    new["/usr/lib/new/inner"] = directory()
    new["/usr/lib/new/inner/file"] = file("inside")
    new["/etc/hosts"] = file("changed by the vendor")
    return new


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path / "www")
    site.publish(10, {"os-core": CORE, "editors": EDITORS})
    return site


def test_a_system_is_installed_and_is_what_the_manifests_say(site: Site, tmp_path: Path) -> None:
    device = SwupdDevice.of(tmp_path / "device", site)
    device.install("--bundles=editors")
    assert_system(device.root, site.tree())
    expect(device.run("diagnose"), Exit.OK)
    assert device.version() == "10"


@pytest.mark.parametrize("packing", [Packing(), Packing(packs=False), Packing(manifest_deltas=False)])
def test_an_update_brings_every_kind_of_change(site: Site, tmp_path: Path, packing: Packing) -> None:
    device = SwupdDevice.of(tmp_path / "device", site)
    device.install("--bundles=editors")
    (device.root / "etc/hosts").write_text("mine")
    ghosts = ["/usr/lib/kernel/vmlinuz-1"]
    site.publish(20, {"os-core": second(CORE), "editors": EDITORS}, packing=packing, ghosts=ghosts)
    expect(device.run("check-update"), Exit.OK)
    expect(device.run("update"), Exit.OK)
    left_alone = {"/etc/hosts": file("mine"), "/usr/lib/kernel/vmlinuz-1": file("kernel 1")}
    assert_system(device.root, {**site.tree(), **left_alone})
    assert device.version() == "20"
    expect(device.run("diagnose"), Exit.OK)
    expect(device.run("check-update"), Exit.NO)
