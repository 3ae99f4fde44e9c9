"""How versions accumulate, judged by the published bytes alone: manifests split by hand, archives read by bsdtar."""

import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tests.swupd_trees import (
    PLAIN,
    Tree,
    build,
    check_fullfiles,
    header,
    lines,
    oracle_hash,
    unpack,
    write_tree,
)

from overhaul.dialects.swupd.bsdiff import apply_delta
from overhaul.dialects.swupd.build import VersionOrderError, building
from overhaul.dialects.swupd.bundles import BundleDefinition, check_bundles
from overhaul.dialects.swupd.listing import ConflictingBundlesError, MisplacedObjectError
from overhaul.dialects.swupd.retention import prune
from overhaul.host.locks import LockedError

NOISE = random.Random(3)
LIBRARY = NOISE.randbytes(20_000)
FIRST: Tree = {
    "/usr/bin/tool": LIBRARY,
    "/usr/bin/gone": b"gone soon",
    "/usr/lib/libx.so": "libx.so.1",
    "/usr/lib/libx.so.1": NOISE.randbytes(9000),
    "/boot/kernel-1": b"kernel one",
    "/etc/configuration": b"one",
    "/empty": None,
}


def later(**changes: bytes | str | None) -> Tree:
    return {**FIRST, **{name.replace("__", "/"): value for name, value in changes.items()}}


@pytest.fixture
def web(tmp_path: Path) -> Path:
    return tmp_path / "www"


def test_a_first_version_lists_and_holds_everything(tmp_path: Path, web: Path) -> None:
    root = write_tree(tmp_path / "root", FIRST)
    (root / "usr/bin/tool").chmod(0o4755)
    build(web, root)
    listed = lines(web, 10)
    names = {"/" + os.fspath(path.relative_to(root)) for path in root.rglob("*")}
    assert listed.keys() == names
    for name, line in listed.items():
        path = root / name[1:]
        kind = "L" if path.is_symlink() else "D" if path.is_dir() else "F"
        assert (line.flags, line.hash, line.version) == (f"{kind}...", oracle_hash(path), 10)
    assert check_fullfiles(web, 10, tmp_path / "full") == len({line.hash for line in listed.values()})
    assert header(web, 10)["previous"] == ["0"]
    assert header(web, 10)["filecount"] == [str(len(names))]
    mom = lines(web, 10, "MoM")
    manifest = tmp_path / "Manifest.os-core"
    manifest.write_bytes((web / "10/Manifest.os-core").read_bytes())
    manifest.chmod(0o644)
    os.chown(manifest, 0, 0)
    assert mom["os-core"].hash == oracle_hash(manifest)
    assert (web / "version/format4/latest").read_text() == (web / "version/latest_version").read_text() == "10\n"


def test_manifest_tars_restore_the_manifest_with_its_mode_and_owner(tmp_path: Path, web: Path) -> None:
    build(web, write_tree(tmp_path / "root", FIRST))
    for name in ("MoM", "os-core", "full"):
        unpack(web / f"10/Manifest.{name}.tar", tmp_path / name)
        restored = tmp_path / name / f"Manifest.{name}"
        assert restored.read_bytes() == (web / f"10/Manifest.{name}").read_bytes()
        assert (restored.stat().st_mode, restored.stat().st_uid, restored.stat().st_gid) == (0o100644, 0, 0)


def test_a_second_version_keeps_what_did_not_change(tmp_path: Path, web: Path) -> None:
    build(web, write_tree(tmp_path / "root", FIRST))
    changed = bytearray(LIBRARY)
    changed[500:520] = b"x" * 33
    second = later(__usr__bin__tool=bytes(changed), __usr__bin__new=b"new")
    del second["/usr/bin/gone"], second["/boot/kernel-1"], second["/usr/lib/libx.so"]
    second["/usr/lib/libx.so"] = b"now a file"
    second["/boot/kernel-2"] = b"kernel two"
    root = write_tree(tmp_path / "root", second)
    done = build(web, root, version=20, previous=10)
    listed = lines(web, 20)
    assert {name: (line.flags, line.version) for name, line in listed.items() if line.version == 20} == {
        "/usr/bin/tool": ("F...", 20),
        "/usr/bin/new": ("F...", 20),
        "/usr/bin/gone": (".d..", 20),
        "/usr/lib/libx.so": ("F...", 20),
        "/boot/kernel-1": (".g..", 20),
        "/boot/kernel-2": ("F...", 20),
    }
    assert listed["/usr/bin/gone"].hash == listed["/boot/kernel-1"].hash == "0" * 64
    assert listed["/etc/configuration"].version == 10
    assert check_fullfiles(web, 20, tmp_path / "full") == 4
    assert done.deltas == 1
    assert header(web, 20)["previous"] == ["10"]

    third = dict(second)
    third["/usr/bin/gone"] = b"back again"
    build(web, write_tree(tmp_path / "root", third), version=30, previous=20)
    listed = lines(web, 30)
    assert listed["/usr/bin/gone"].flags == "F..."
    assert listed["/usr/bin/gone"].version == 30
    assert "/boot/kernel-1" not in listed


def test_deleted_lines_are_carried_until_the_next_format(tmp_path: Path, web: Path) -> None:
    build(web, write_tree(tmp_path / "root", FIRST))
    second = later()
    del second["/usr/bin/gone"]
    root = write_tree(tmp_path / "root", second)
    build(web, root, version=20, previous=10)
    (root / "usr/bin/other").touch()
    build(web, root, version=30, previous=20)
    assert (lines(web, 30)["/usr/bin/gone"].flags, lines(web, 30)["/usr/bin/gone"].version) == (".d..", 20)
    build(web, root, version=40, previous=30, options=replace(PLAIN, format=26))
    listed = lines(web, 40)
    assert "/usr/bin/gone" not in listed
    assert {line.version for line in listed.values()} == {40}
    assert header(web, 40)["previous"] == ["0"]
    assert header(web, 40, "MoM")["minversion"] == ["40"]
    assert (web / "version/format4/latest").read_text() == "30\n"
    assert (web / "version/format26/latest").read_text() == (web / "version/latest_version").read_text() == "40\n"
    with pytest.raises(VersionOrderError, match="never goes back"):
        build(web, root, version=50, previous=40)


def test_minversion_makes_everything_older_again(tmp_path: Path, web: Path) -> None:
    root = write_tree(tmp_path / "root", FIRST)
    build(web, root)
    build(web, root, version=20, previous=10, minversion=15)
    listed = lines(web, 20)
    assert {line.version for line in listed.values()} == {20}
    assert check_fullfiles(web, 20, tmp_path / "full") == len({line.hash for line in listed.values()})


def test_a_bundle_without_changes_gets_no_manifest(tmp_path: Path, web: Path) -> None:
    bundles = check_bundles([BundleDefinition(name="editors", files=("/usr/bin/ed",))], place="here")
    tree = later(__usr__bin__ed=b"editor")
    build(web, write_tree(tmp_path / "root", tree), bundles=bundles)
    before = lines(web, 10, "MoM")
    build(web, write_tree(tmp_path / "root", {**tree, "/more": b"more"}), version=20, previous=10, bundles=bundles)
    mom = lines(web, 20, "MoM")
    assert mom["editors"] == before["editors"]
    assert mom["os-core"].version == 20
    assert not (web / "20/Manifest.editors").exists()
    assert header(web, 10, "editors")["includes"] == ["os-core"]


def test_a_path_is_listed_once_along_includes_and_moves_with_its_full_file(tmp_path: Path, web: Path) -> None:
    tree = later(__usr__bin__ed=b"editor", __usr__share__ed__help=b"help")
    small = check_bundles(
        [
            BundleDefinition(name="base", files=("/usr/bin/ed",)),
            BundleDefinition(name="editors", includes=("base",), files=("/usr/bin/ed", "/usr/share/ed")),
        ],
        place="here",
    )
    root = write_tree(tmp_path / "root", tree)
    build(web, root, bundles=small)
    assert "/usr/bin/ed" in lines(web, 10, "base")
    assert "/usr/bin/ed" not in lines(web, 10, "editors") | lines(web, 10)
    assert lines(web, 10, "editors")["/usr/share/ed/help"].flags == "F..."
    alone = check_bundles(
        [BundleDefinition(name="base"), BundleDefinition(name="editors", files=("/usr/bin/ed", "/usr/share/ed"))],
        place="here",
    )
    build(web, root, version=20, previous=10, bundles=alone)
    moved = lines(web, 20, "editors")["/usr/bin/ed"]
    assert (moved.flags, moved.version) == ("F...", 20)
    assert (web / f"20/files/{moved.hash}.tar").is_file()
    assert lines(web, 20, "base")["/usr/bin/ed"].flags == ".d.."


def test_a_dropped_bundle_is_emptied_and_then_gone(tmp_path: Path, web: Path) -> None:
    bundles = check_bundles([BundleDefinition(name="editors", files=("/usr/bin/ed",))], place="here")
    root = write_tree(tmp_path / "root", later(__usr__bin__ed=b"editor"))
    build(web, root, bundles=bundles)
    build(web, root, version=20, previous=10)
    assert {line.flags for line in lines(web, 20, "editors").values()} == {".d.."}
    (root / "more").touch()
    build(web, root, version=30, previous=20)
    assert lines(web, 30, "MoM").keys() == {"os-core"}


def test_packs_hold_what_a_device_of_an_older_version_lacks(tmp_path: Path, web: Path) -> None:
    root = write_tree(tmp_path / "root", FIRST)
    build(web, root)
    changed = LIBRARY[:3000] + b"inserted" + LIBRARY[3004:]
    (root / "usr/bin/tool").write_bytes(changed)
    (root / "usr/bin/new").write_bytes(b"new")
    (root / "folder").mkdir()
    build(web, root, version=20, previous=10)
    (root / "usr/bin/last").symlink_to("new")
    build(web, root, version=30, previous=20)

    def members(version: int, old: int) -> dict[str, Path]:
        place = tmp_path / f"pack-{old}-{version}"
        unpack(web / f"{version}/pack-os-core-from-{old}.tar", place)
        assert {path.name for path in place.iterdir()} <= {"staged", "delta"}
        assert (place / "staged").stat().st_mode & 0o777 == 0o700
        return {path.name: path for folder in place.iterdir() for path in folder.iterdir()}

    old, new = lines(web, 10), lines(web, 30)
    delta = f"10-20-{old['/usr/bin/tool'].hash}-{new['/usr/bin/tool'].hash}"
    step = members(30, 10)
    assert step.keys() == {delta, *(new[name].hash for name in ("/usr/bin/new", "/folder", "/usr/bin/last"))}
    assert apply_delta(step[delta].read_bytes(), LIBRARY) == changed
    assert members(30, 20).keys() == {new["/usr/bin/last"].hash}
    everything = members(30, 0)
    assert everything.keys() >= {line.hash for line in new.values()}
    for digest in {line.hash for line in new.values()}:
        assert oracle_hash(everything[digest]) == digest


def test_manifest_deltas_make_the_new_manifest_of_the_old(tmp_path: Path, web: Path) -> None:
    root = write_tree(tmp_path / "root", {f"/usr/share/{number}": b"%d" % number for number in range(200)})
    build(web, root)
    (root / "usr/share/7").write_bytes(b"seven")
    build(web, root, version=20, previous=10)
    delta = (web / "20/Manifest-os-core-delta-from-10").read_bytes()
    assert apply_delta(delta, (web / "10/Manifest.os-core").read_bytes()) == (web / "20/Manifest.os-core").read_bytes()


def test_format_3_hashes_directory_paths_and_names_deltas_by_the_new_hash(tmp_path: Path, web: Path) -> None:
    options = replace(PLAIN, format=3)
    root = write_tree(tmp_path / "root", FIRST)
    build(web, root, options=options)
    first = lines(web, 10)
    assert first["/usr"].hash != first["/boot"].hash
    (root / "usr/bin/tool").write_bytes(LIBRARY[:9000] + b"!" + LIBRARY[9000:])
    build(web, root, version=20, previous=10, options=options)
    names = [path.name for path in (web / "20/delta").iterdir()]
    assert names == [f"10-20-{lines(web, 20)['/usr/bin/tool'].hash}"]


def test_renames_are_linked_at_both_ends_where_that_is_asked_for(tmp_path: Path, web: Path) -> None:
    options = replace(PLAIN, format=3, renames=True)
    root = write_tree(tmp_path / "root", FIRST)
    build(web, root, options=options)
    build(web, write_tree(root, later(__usr__bin__new=b"unlike all others")), version=20, previous=10, options=options)
    (root / "usr/lib/libx.so.1").rename(root / "usr/lib/libx.so.2")
    (root / "usr/lib/libx.so.2").write_bytes(LIBRARY)
    (root / "usr/bin/gone").unlink()
    build(web, root, version=30, previous=20, options=options)
    found = lines(web, 30)
    assert found["/usr/lib/libx.so.2"].flags == "F..r"
    assert found["/usr/lib/libx.so.1"].flags == ".d.r"
    assert found["/usr/lib/libx.so.1"].hash == found["/usr/lib/libx.so.2"].hash
    assert (found["/usr/bin/gone"].flags, found["/usr/bin/gone"].hash) == (".d..", "0" * 64)
    assert found["/usr/bin/new"].flags == "F..."


@pytest.mark.parametrize("ages", [range(8), range(8, 0, -1)], ids=["oldest first", "oldest last"])
def test_full_files_do_not_depend_on_which_thread_comes_first(tmp_path: Path, web: Path, ages: range) -> None:
    root = write_tree(tmp_path / "root", {f"/usr/{number}": b"the same" for number in range(8)})
    for number, age in enumerate(ages):
        os.utime(root / f"usr/{number}", (1000 + age, 1000 + age))
    build(web, root, options=replace(PLAIN, compression="none"))
    archive = (web / f"10/files/{lines(web, 10)['/usr/0'].hash}.tar").read_bytes()
    # Where a header of tar states the time.
    assert int(archive[136:147], 8) == 1000 + min(ages)


@pytest.mark.parametrize("compression", ["xz", "gzip", "zstd", "none"])
def test_every_compression_is_read_by_libarchive(tmp_path: Path, web: Path, compression: str) -> None:
    options = replace(PLAIN, compression=compression)  # type: ignore[arg-type]
    root = write_tree(tmp_path / "root", FIRST)
    build(web, root, options=options)
    check_fullfiles(web, 10, tmp_path / "full")
    unpack(web / "10/pack-os-core-from-0.tar", tmp_path / "pack")
    staged = {path.name for path in (tmp_path / "pack/staged").iterdir()}
    assert staged == {line.hash for line in lines(web, 10).values()}


def test_trees_with_everything_nasty_are_published(tmp_path: Path, web: Path) -> None:
    root = write_tree(tmp_path / "root", {"/usr/bin/a": b"linked", "/deep/" + "d" * 200: b"long name"})
    os.link(root / "usr/bin/a", root / "usr/bin/b")
    (root / "long-link").symlink_to("t" * 300)
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"odd\xff name")).write_bytes(b"odd")
    (root / "bad;name").write_bytes(b"left out")
    (root / "new\nline").write_bytes(b"left out")
    with (root / "sparse").open("wb") as stream:
        stream.truncate(3_000_000)
    os.chown(root / "usr/bin/a", 3_000_000, 4_000_000)
    (root / "sticky").mkdir(mode=0o700)
    (root / "sticky").chmod(0o1777)
    done = build(web, root)
    listed = lines(web, 10)
    assert listed["/usr/bin/a"].hash == listed["/usr/bin/b"].hash
    assert not {"/pipe", "/bad;name", "/new"} & listed.keys()
    assert sum("left out" in warning for warning in done.warnings) == 3
    for name, line in listed.items():
        assert oracle_hash(root / name[1:]) == line.hash
    check_fullfiles(web, 10, tmp_path / "full")
    again = subprocess.run(["tar", "-tf", web / "10/Manifest.os-core.tar"], capture_output=True, check=True)
    assert again.stdout == b"Manifest.os-core\n"


def test_bundles_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    from overhaul.dialects.swupd.listing import Listed, Listing, subtract

    one = Listing(definition=BundleDefinition(name="one"), objects={b"/a": Listed("F", "1" * 64, 1)})
    two = Listing(definition=BundleDefinition(name="two"), objects={b"/a": Listed("F", "2" * 64, 1)})
    with pytest.raises(ConflictingBundlesError, match="'/a'"):
        subtract([one, two])
    below = Listing(definition=BundleDefinition(name="two"), objects={b"/a/b": Listed("F", "2" * 64, 1)})
    with pytest.raises(MisplacedObjectError, match="/a/b"):
        subtract([one, below])


def test_two_builders_never_write_at_once(tmp_path: Path, web: Path) -> None:
    root = write_tree(tmp_path / "root", FIRST)
    with building(web), pytest.raises(LockedError):
        build(web, root)
    build(web, root)


def test_versions_that_devices_can_need_are_kept_and_named(tmp_path: Path, web: Path) -> None:
    root = write_tree(tmp_path / "root", FIRST)
    build(web, root)
    for version in (20, 30, 40):
        (root / "usr/bin/tool").write_bytes(b"%d" % version * 300)
        build(web, root, version=version, previous=version - 10)
    done = prune(web, keep=2, remove=False)
    assert {one.version: one.reason for one in done.needed}.keys() == {10, 30, 40}
    assert done.unneeded == (20,)
    assert done.freed_bytes > 0
    assert (web / "20").is_dir()
    assert prune(web, keep=2, remove=True).unneeded == (20,)
    assert sorted(path.name for path in web.iterdir() if path.name.isdigit()) == ["10", "30", "40"]
    (root / "usr/bin/tool").write_bytes(b"50" * 300)
    build(web, root, version=50, previous=40)
