"""The client against a repository that is written byte by byte: every command from the first installation on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.swupd_device import SwupdDevice, assert_system, expect, run
from tests.swupd_keys import self_signed
from tests.swupd_site import Packing, Site, Thing, Tree, changed, directory, file, link

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


def _installed(site: Site, tmp_path: Path, *words: str) -> SwupdDevice:
    device = SwupdDevice.of(tmp_path / "device", site)
    device.install(*words)
    return device


def test_the_whole_comes_as_single_files_where_there_are_no_packs(tmp_path: Path) -> None:
    site = Site(tmp_path / "www")
    site.publish(10, {"os-core": CORE}, packing=Packing(packs=False))
    device = _installed(site, tmp_path)
    assert_system(device.root, site.tree())


def test_repair_restores_what_was_damaged_removed_and_added(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path, "--bundles=editors")
    (device.root / "usr/bin/tool").write_bytes(b"damaged")
    (device.root / "usr/bin/su").chmod(0o755)
    (device.root / "usr/lib/thing").unlink()
    (device.root / "usr/lib/empty").chmod(0o700)
    (device.root / "usr/lib/short").unlink()
    (device.root / "usr/lib/short").symlink_to("elsewhere")
    (device.root / "usr/lib/stray").mkdir()
    (device.root / "usr/lib/stray/file").write_text("stray")
    (device.root / "usr/local").mkdir()
    (device.root / "usr/local/mine").write_text("mine")
    ran = expect(device.run("diagnose", "--picky", "--quiet"), Exit.NO)
    root = str(device.root)
    assert ran.lines == [
        f"{root}/usr/lib/thing",
        f"{root}/usr/bin/su",
        f"{root}/usr/bin/tool",
        f"{root}/usr/lib/empty",
        f"{root}/usr/lib/short",
        f"{root}/usr/lib/stray/file",
        f"{root}/usr/lib/stray",
    ]
    assert expect(device.run("diagnose", "--quick", "--quiet"), Exit.NO).lines == [f"{root}/usr/lib/thing"]
    ran = expect(device.run("repair", "--picky", "--quiet"), Exit.OK)
    assert f"{root}/usr/lib/thing -> fixed" in ran.lines
    assert f"{root}/usr/lib/stray/file -> deleted" in ran.lines
    mine = {"/usr/local": directory(), "/usr/local/mine": file("mine")}
    assert_system(device.root, {**site.tree(), **mine})


def test_repair_says_what_it_could_not_fix(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    for path in ("/usr/lib/thing", "/usr/bin/old"):
        (device.root / path[1:]).unlink()
    site.fullfile("/usr/lib/thing").unlink()
    ran = expect(device.run("repair", "--quiet"), Exit.NOT_FIXED)
    assert sorted(ran.lines) == [
        f"{device.root}/usr/bin/old -> fixed",
        f"{device.root}/usr/lib/thing -> not fixed",
    ]
    assert (device.root / "usr/bin/old").read_text() == "old"


def test_bundles_come_with_what_they_include_and_go_without_what_others_have(tmp_path: Path) -> None:
    site = Site(tmp_path / "www")
    shared: Tree = {"/usr/lib/shared": file("shared")}
    site.publish(
        10,
        {
            "base": {"/usr/lib/base": file("base"), **shared},
            "game": {"/usr/lib/game": file("game"), **shared},
            "hints": {"/usr/lib/hints": file("hints")},
        },
        includes={"game": ["base"]},
        also_add={"game": ["hints"]},
        experimental=["hints"],
    )
    device = _installed(site, tmp_path)
    expect(device.run("bundle-add", "game"), Exit.OK)
    assert_system(device.root, site.tree())
    assert expect(device.run("bundle-list", "--quiet"), Exit.OK).lines == ["base", "game", "hints", "os-core"]
    assert expect(device.run("bundle-list", "--all", "--status", "--quiet"), Exit.OK).lines == [
        "base: installed",
        "game: explicitly installed",
        "hints: installed, experimental",
        "os-core: installed",
    ]
    assert expect(device.run("bundle-list", "--deps=game", "--quiet"), Exit.OK).lines == ["base", "os-core"]
    assert expect(device.run("bundle-list", "--has-dep=base", "--quiet"), Exit.OK).lines == ["game"]
    assert expect(device.run("bundle-list", "--orphans", "--quiet"), Exit.OK).lines == ["hints"]
    assert expect(device.run("bundle-info", "game", "--quiet"), Exit.OK).lines == ["Explicitly installed"]
    expect(device.run("bundle-add", "game"), Exit.OK)
    expect(device.run("bundle-add", "nonsense"), Exit.INVALID_BUNDLE)
    expect(device.run("bundle-remove", "os-core"), Exit.REQUIRED_BUNDLE)
    expect(device.run("bundle-remove", "base"), Exit.REQUIRED_BUNDLE)
    expect(device.run("bundle-remove", "nonsense"), Exit.INVALID_BUNDLE)
    expect(device.run("bundle-remove", "--orphans"), Exit.OK)
    assert not (device.root / "usr/lib/hints").exists()
    expect(device.run("bundle-remove", "game"), Exit.OK)
    assert not (device.root / "usr/lib/game").exists()
    assert (device.root / "usr/lib/shared").read_text() == "shared"
    expect(device.run("bundle-remove", "game"), Exit.NOT_INSTALLED)
    expect(device.run("bundle-remove", "--force", "base"), Exit.OK)
    assert_system(device.root, site.versions[-1].trees["os-core"])
    expect(device.run("diagnose"), Exit.OK)


def test_removing_recursively_takes_along_what_nobody_else_needs(tmp_path: Path) -> None:
    site = Site(tmp_path / "www")
    bundles = {name: {f"/usr/lib/{name}": file(name)} for name in ("a", "b", "c", "d")}
    site.publish(10, bundles, includes={"a": ["b", "c"], "d": ["c"]})
    device = _installed(site, tmp_path)
    expect(device.run("bundle-add", "a", "d"), Exit.OK)
    expect(device.run("bundle-remove", "--recursive", "a"), Exit.OK)
    assert expect(device.run("bundle-list", "--quiet"), Exit.OK).lines == ["c", "d", "os-core"]


def test_a_file_is_found_in_bundles_that_are_not_installed(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    assert expect(device.run("search-file", "bin/ed", "--quiet"), Exit.OK).lines == ["[editors]", "/usr/bin/ed"]
    assert expect(device.run("search", "--regexp", "/e[d]$", "--quiet"), Exit.OK).lines == ["[editors]", "/usr/bin/ed"]
    assert (
        expect(device.run("search-file", "-B", "tool", "-m", "--quiet"), Exit.OK)
        .lines[0]
        .startswith("/usr/bin/tool,os-core,")
    )
    expect(device.run("search-file", "no such thing"), Exit.NO)
    expect(device.run("search-file", "-l", "tool"), Exit.NO)


def test_an_update_is_shown_before_it_is_made(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    before = site.tree()
    del before["/usr/bin/ed"], before["/usr/share/clear/bundles/editors"]
    site.publish(20, {"os-core": second(CORE), "editors": EDITORS})
    ran = expect(device.run("update", "--dry-run", "--quiet"), Exit.OK)
    assert "~ /usr/bin/tool" in ran.lines
    assert "+ /usr/lib/new/inner/file" in ran.lines
    assert "- /usr/bin/old" in ran.lines
    assert not any("/etc/" in line for line in ran.lines)
    assert_system(device.root, before)


def test_a_downloaded_update_changes_nothing_and_is_used_later(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    site.publish(20, {"os-core": second(CORE), "editors": EDITORS})
    expect(device.run("update", "--download", "--keepcache"), Exit.OK)
    assert device.version() == "10"
    for path in (site.directory / "20").iterdir():
        if "pack" in path.name:
            path.unlink()
    for path in (site.directory / "20/files").iterdir():
        path.unlink()
    expect(device.run("update"), Exit.OK)
    assert device.version() == "20"


def test_an_update_never_goes_back_nor_beyond_what_is_published(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    site.publish(20, {"os-core": second(CORE), "editors": EDITORS})
    site.publish(30, {"os-core": CORE, "editors": EDITORS})
    expect(device.run("update", "--version=20"), Exit.OK)
    assert device.version() == "20"
    expect(device.run("update", "-V", "10"), Exit.BAD_OPTION)
    expect(device.run("update", "--manifest", "1000"), Exit.OK)
    assert device.version() == "30"


def test_what_was_regenerated_is_fetched_only_where_it_is_not_intact(tmp_path: Path) -> None:
    site = Site(tmp_path / "www")
    site.publish(10, {"os-core": OLD_AND_NEW})
    device = _installed(site, tmp_path)
    (device.root / "usr/lib/one").write_text("damaged")
    site.publish(20, {"os-core": OLD_AND_NEW}, packing=Packing(packs=False), minversion=20)
    site.fullfile("/usr/lib/two").unlink()
    expect(device.run("update"), Exit.OK)
    assert_system(device.root, site.tree())


OLD_AND_NEW: Tree = {"/usr/lib/one": file("one"), "/usr/lib/two": file("two")}


def test_a_bundle_that_is_published_no_more_leaves_the_device(tmp_path: Path) -> None:
    site = Site(tmp_path / "www")
    site.publish(10, {"gone": {"/usr/lib/gone": file("gone")}})
    device = _installed(site, tmp_path, "--bundles=gone")
    site.publish(20, {})
    expect(device.run("update"), Exit.OK)
    assert_system(device.root, site.tree())
    assert expect(device.run("bundle-list", "--quiet"), Exit.OK).lines == ["os-core"]


def test_paths_that_bundles_disagree_about_are_left_alone(tmp_path: Path) -> None:
    site = Site(tmp_path / "www")
    site.publish(10, {"a": {"/usr/lib/same": file("1")}, "b": {"/usr/lib/same": file("1")}})
    device = _installed(site, tmp_path, "--bundles=a,b")
    site.publish(20, {"a": {"/usr/lib/same": file("2")}, "b": {"/usr/lib/same": file("3")}})
    expect(device.run("update"), Exit.OK)
    assert (device.root / "usr/lib/same").read_text() == "1"


def test_mirror_clean_info_and_hashdump_do_what_they_say(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    plain = [f"--path={device.root}", f"--statedir={device.state}", "--quiet"]
    expect(run("mirror", "--set", "https://mirror.example/update/", *plain), Exit.OK)
    assert expect(run("mirror", *plain), Exit.OK).lines == ["https://mirror.example/update"]
    assert run("mirror", "--set", "http://mirror.example", *plain).code is Exit.BAD_OPTION
    expect(run("mirror", "-s", site.url, *plain), Exit.OK)
    assert expect(run("info", *plain), Exit.OK).lines == ["10"]
    expect(run("mirror", "--unset", *plain), Exit.UNEXPECTED)
    ran = expect(run("hashdump", "-p", str(device.root), "/usr/lib/thing"), Exit.OK)
    assert ran.out == f"{file('thing').hash}\n"
    site.publish(20, {"os-core": second(CORE), "editors": EDITORS})
    expect(device.run("update", "--keepcache"), Exit.OK)
    listed = expect(device.run("clean", "--dry-run", "--quiet"), Exit.OK).lines
    assert listed
    assert all(Path(path).exists() or Path(path).is_symlink() for path in listed)
    expect(device.run("clean", "--all"), Exit.OK)
    assert not any(Path(path).exists() for path in listed)
    expect(device.run("diagnose"), Exit.OK)


def test_json_output_is_one_array(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    (device.root / "usr/lib/thing").unlink()
    ran = expect(device.run("diagnose", "--json-output"), Exit.NO)
    found = json.loads(ran.out)
    assert found[0] == {"type": "start", "section": "diagnose"}
    assert found[-1] == {"type": "end", "section": "diagnose", "status": 1}
    assert any("usr/lib/thing" in one.get("msg", "") for one in found)
    assert ran.lines[0] == "["
    assert ran.lines[-1] == "]"


def test_a_second_client_waits_for_nobody(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD.format(directory=str(device.state))], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        ran = expect(device.run("update"), Exit.LOCKED)
        assert str(holder.pid) in ran.errors
    finally:
        holder.communicate()
    expect(device.run("update"), Exit.OK)


_HOLD = """
import sys
import json
import subprocess
import sys
from pathlib import Path
from overhaul.dialects.swupd.device.state import Data
with Data(Path({directory!r})).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_the_verify_of_the_first_clients_still_works(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    expect(device.run("verify", "-V", "--log=debug"), Exit.OK)
    (device.root / "usr/lib/thing").unlink()
    expect(device.run("verify", "-V", "--log=stdout"), Exit.NO)
    expect(device.run("verify", "--fix", "-m", "10"), Exit.OK)
    expect(device.run("verify", "--log=loud"), Exit.BAD_OPTION)
    assert_system(device.root, site.versions[0].trees["os-core"])


def test_a_configuration_file_sets_options_and_the_command_line_wins(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = _installed(site, tmp_path)
    place = tmp_path / "etc"
    place.mkdir()
    (place / "config").write_text("# ours\n[GLOBAL]\nquiet=true\n[diagnose]\nquick=true\n")
    monkeypatch.setattr("overhaul.dialects.swupd.device.config.CONFIG_DIRECTORIES", (place,))
    monkeypatch.setattr("overhaul.dialects.swupd.device.config.read_config.__defaults__", ((place,),))
    (device.root / "usr/lib/thing").write_text("other")
    ran = expect(device.run("diagnose"), Exit.OK)
    assert ran.out == ""
    expect(device.run("diagnose", "--quick=false"), Exit.NO)
    (place / "config").write_text("[GLOBAL]\nquick: true\n")
    expect(device.run("diagnose"), Exit.BAD_OPTION)


def test_a_staged_update_leaves_the_running_system_alone_and_can_be_rolled_back(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path, "--bundles=editors")
    (device.root / "etc/hosts").write_text("mine")
    old = {**site.tree(), "/etc/hosts": file("mine")}
    site.publish(20, {"os-core": second(CORE), "editors": EDITORS})
    place = tmp_path / "systems"
    expect(device.run("update", f"--staged={place}"), Exit.OK)
    assert_system(device.root, old)
    left_alone = {"/etc/hosts": file("mine"), "/usr/lib/kernel/vmlinuz-1": file("kernel 1")}
    assert_system((place / "current").resolve(), {**site.tree(), **left_alone})
    # What the device writes into its configuration does not reach the other system.
    (place / "current/etc/hosts").write_text("theirs")
    assert (device.root / "etc/hosts").read_text() == "mine"
    expect(run("rollback", f"--staged={place}"), Exit.OK)
    assert (place / "current").resolve() == device.root
    expect(run("rollback", f"--staged={place}"), Exit.OK)
    assert_system((place / "current").resolve(), {**site.tree(), **left_alone, "/etc/hosts": file("theirs")})


def test_a_third_party_repository_has_a_root_of_its_own(site: Site, tmp_path: Path) -> None:
    device = _installed(site, tmp_path)
    theirs = Site(tmp_path / "theirs", keys=self_signed(tmp_path, name="theirs"))
    tool = Thing("F", b"#!/bin/sh\necho tool\n", 0o755, mark="x")
    theirs.publish(10, {"apps": {"/usr/bin/app": tool, "/usr/lib/app": file("1")}})
    expect(device.run("3rd-party", "add", "theirs", theirs.url), Exit.INVALID_REPOSITORY)
    expect(device.run("3rd-party", "add", "theirs", theirs.url, "--yes"), Exit.OK)
    assert expect(device.run("3rd-party", "list", "--quiet"), Exit.OK).lines == [f"theirs: {theirs.url}"]
    expect(device.run("3rd-party", "bundle-add", "apps"), Exit.OK)
    home = device.root / "opt/3rd-party"
    assert_system(home / "bundles/theirs", theirs.tree())
    done = subprocess.run([home / "bin/app"], capture_output=True, check=True)
    assert done.stdout == b"tool\n"
    theirs.publish(20, {"apps": {"/usr/bin/app": tool, "/usr/lib/app": file("2")}})
    expect(device.run("3rd-party", "update"), Exit.OK)
    assert_system(home / "bundles/theirs", theirs.tree())
    expect(device.run("3rd-party", "diagnose", "--repo=theirs"), Exit.OK)
    expect(device.run("3rd-party", "bundle-remove", "apps"), Exit.OK)
    assert not (home / "bin/app").exists()
    expect(device.run("3rd-party", "remove", "theirs"), Exit.OK)
    assert not (home / "bundles/theirs").exists()
    expect(device.run("3rd-party", "remove", "theirs"), Exit.INVALID_REPOSITORY)
