"""The old server's how-to, word for word: extract, process, serve; and what goes wrong on the way."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.swupd_keys import openssl, self_signed
from tests.swupd_trees import TIMESTAMP, Tree, header, lines, unpack, write_tree
from tests.tools import need

from overhaul.cli.swupd import command
from overhaul.dialects.swupd.build import VersionOrderError
from overhaul.dialects.swupd.bundles import BundleDefinitionError
from overhaul.dialects.swupd.checking import check_tree
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.signing import load_signer
from overhaul.dialects.swupd.storage import MissingInputError, Processed, Storage
from overhaul.progress import Silence

FAST = BuildOptions(workers=2, fullfile_level=0, pack_level=0)
CORE: Tree = {"/usr/lib/os-release": b'NAME="Test"\nVERSION_ID=9.9\n', "/usr/bin/tool": b"tool"}


def process(storage: Path, version: int, options: BuildOptions = FAST, minversion: int = 0) -> Processed:
    place = Storage(storage)
    return place.process(version, options=options, timestamp=TIMESTAMP, minversion=minversion, progress=Silence())


def content(web: Path, version: int, name: str, work: Path) -> bytes:
    """Return a published file's content, from its full file."""
    line = lines(web, version)[name]
    unpack(web / f"{line.version}/files/{line.hash}.tar", work / line.hash)
    return (work / line.hash / line.hash).read_bytes()


def test_one_root_file_system_becomes_os_core_that_knows_itself(tmp_path: Path) -> None:
    write_tree(tmp_path / "image/10/os-core", CORE)
    assert process(tmp_path, 10).latest == {4: 10}
    web = tmp_path / "www"
    assert content(web, 10, "/usr/lib/os-release", tmp_path / "w") == b'NAME="Test"\nVERSION_ID=10\n'
    assert content(web, 10, "/usr/share/defaults/swupd/format", tmp_path / "w") == b"4\n"
    assert content(web, 10, "/usr/share/clear/bundles/os-core", tmp_path / "w") == b""
    assert (tmp_path / "image/latest.version").read_text() == (tmp_path / "image/LAST_VER").read_text() == "10\n"
    write_tree(tmp_path / "image/20/os-core", {**CORE, "/usr/bin/more": b"more"})
    process(tmp_path, 20)
    assert {name for name, line in lines(web, 20).items() if line.version == 20} == {
        "/usr/lib/os-release", "/usr/bin/more",
    }  # fmt: skip
    assert check_tree(web, certificate=None, progress=Silence()).problems == ()


def test_a_tree_made_for_swupd_is_left_as_it_is(tmp_path: Path) -> None:
    ready = {
        **CORE,
        "/usr/lib/os-release": b"VERSION_ID=10\n",
        "/usr/share/defaults/swupd/format": b"4",
        "/usr/share/clear/bundles/os-core": b"",
        "/usr/share/clear/versionstamp": b"1",
    }
    root = write_tree(tmp_path / "image/10/os-core", ready)
    process(tmp_path, 10)
    names = {"/" + os.fspath(path.relative_to(root)) for path in root.rglob("*")}
    assert lines(tmp_path / "www", 10).keys() == names


def test_bundles_of_the_old_server_have_a_tree_each_and_include_files(tmp_path: Path) -> None:
    groups = "[os-core]\ngroup=os-core\n[editors]\ngroup=editors\n[old]\ngroup=old\nstatus=Deprecated\n"
    (tmp_path / "groups.ini").write_text(groups)
    write_tree(tmp_path / "image/10/os-core", CORE)
    write_tree(tmp_path / "image/10/editors", {**CORE, "/usr/bin/ed": b"ed"})
    process(tmp_path, 10)
    web = tmp_path / "www"
    assert lines(web, 10, "MoM").keys() == {"editors", "os-core"}
    assert "/usr/bin/tool" not in lines(web, 10, "editors")
    assert {"/usr/bin/ed", "/usr/share/clear/bundles/editors"} <= lines(web, 10, "editors").keys()


def test_server_ini_of_the_old_server_is_followed(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    (storage / "server.ini").write_text(
        f"[Server]\nimagebase={tmp_path}/in/\noutputdir=out\n[Debuginfo]\nbanned=true\n"
    )
    write_tree(
        tmp_path / "in/10/os-core", {**CORE, "/usr/lib/debug/tool.debug": b"names", "/usr/src/debug/tool.c": b""}
    )
    assert process(storage, 10).latest == {4: 10}
    listed = lines(storage / "out", 10)
    assert {"/usr/bin/tool", "/usr/lib/debug", "/usr/src/debug"} <= listed.keys()
    assert not [name for name in listed if name.startswith(("/usr/lib/debug/", "/usr/src/debug/"))]
    assert (tmp_path / "in/LAST_VER").read_text() == "10\n"
    done = CliRunner().invoke(command, ["check", "-S", str(storage)])
    assert (done.exit_code, "right" in done.output) == (0, True)


def test_lists_of_paths_divide_one_tree(tmp_path: Path) -> None:
    (tmp_path / "groups.ini").write_text("[os-core]\ngroup=os-core\n[editors]\ngroup=editors\n")
    place = tmp_path / "image/10"
    write_tree(place / "full", {**CORE, "/usr/bin/ed": b"ed"})
    (place / "os-core.content.txt").write_text("/usr\n/usr/bin\n/usr/bin/tool\n/usr/lib\n/usr/lib/os-release\n")
    (place / "editors.content.txt").write_text("/usr/bin/ed\n")
    process(tmp_path, 10)
    editors = lines(tmp_path / "www", 10, "editors")
    assert {"/usr/bin/ed", "/usr/share/clear/bundles/editors"} <= editors.keys()
    assert "/usr/bin/ed" not in lines(tmp_path / "www", 10)


def test_a_new_format_takes_two_versions_and_leads_old_clients_over(tmp_path: Path) -> None:
    for version in (10, 20):
        write_tree(tmp_path / f"image/{version}/os-core", {**CORE, f"/v{version}": b"x"})
    process(tmp_path, 10)
    done = process(tmp_path, 20, replace(FAST, format=29))
    assert done.latest == {4: 20, 29: 30}
    web = tmp_path / "www"
    assert [header(web, version, "MoM")["previous"] for version in (20, 30)] == [["10"], ["0"]]
    assert header(web, 20, "MoM")["actions"] == ["update"]
    for version in (20, 30):
        assert b"VERSION_ID=30\n" in content(web, version, "/usr/lib/os-release", tmp_path / "w")
        assert content(web, version, "/usr/share/defaults/swupd/format", tmp_path / "w") == b"29\n"
    assert {line.version for line in lines(web, 30).values()} == {30}
    assert process(tmp_path, 20, replace(FAST, format=29)).built == ()


def test_the_same_version_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "image/10/os-core", CORE)
    process(tmp_path, 10)
    assert process(tmp_path, 10).built == ()
    (root / "more").touch()
    with pytest.raises(VersionOrderError, match="build this as 20"):
        process(tmp_path, 10)
    with pytest.raises(MissingInputError, match="extract"):
        process(tmp_path, 20)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not define os-core"),
        ("[os-core]\ngroup=os-core\n[x]\ngroup=../x\n", "no name for a bundle"),
        ("[os-core]\ngroup=os-core\n[x]\ngroup=os-core\n", "defined twice"),
        ("[os-core]\ngroup=os-core\ncommand=rm\n", "unknown key 'command'"),
        ("[os-core\n", "File contains no section headers"),
        ("[os-core]\ngroup=os-core\n[x]\ngroup=MoM\n", "no name for a bundle"),
        ("[os-core]\ngroup=os-core\n[os-core]\n", "already exists"),
        ("[os-core]\ngroup=os-core\n[x]\nstatus=a\tb\n", "no plain text"),
        ("\0", "no section headers"),
    ],
)  # fmt: skip
def test_hostile_groups_are_refused_in_a_sentence(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "groups.ini").write_text(text)
    write_tree(tmp_path / "image/10/os-core", CORE)
    with pytest.raises(BundleDefinitionError, match=reason):
        process(tmp_path, 10)
    assert not list((tmp_path / "www").glob("[0-9]*"))


def test_the_how_to_runs_from_a_disk_image_to_signed_pointers(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", CORE)
    os.chown(root / "usr/bin/tool", 12, 34)
    (root / "usr/bin/tool").chmod(0o4755)
    os.setxattr(root / "usr/bin/tool", "security.selinux", b"system_u:object_r:bin_t:s0\0")
    system = tmp_path / "system.ext4"
    with system.open("wb") as stream:
        stream.truncate(8 << 20)
    subprocess.run([need("mkfs.ext4"), "-q", "-F", "-d", root, system], check=True)
    disk = tmp_path / "disk.dsk"
    disk.write_bytes(bytes(2 << 20) + system.read_bytes() + bytes(1 << 20))
    table = b"label: gpt\nstart=2048, size=2048\nstart=4096, size=16384\n"
    subprocess.run([need("sfdisk"), "-q", disk], input=table, check=True)
    files = self_signed(tmp_path)
    storage = tmp_path / "storage"

    def invoke(*arguments: object) -> str:
        done = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    invoke("extract-rootfs", disk, storage, 10, 2)
    tool = storage / "image/10/os-core/usr/bin/tool"
    assert (tool.stat().st_mode, tool.stat().st_uid, tool.stat().st_gid) == (0o104755, 12, 34)
    assert os.getxattr(tool, "security.selinux") == b"system_u:object_r:bin_t:s0\0"
    said = invoke("process", 10, "-S", storage, "--key", files.key, "--certificate", files.certificate)
    assert "Devices of format 4 see version 10." in said
    web = storage / "www"
    for name in ("10/Manifest.MoM", "version/format4/latest", "version/latest_version"):
        openssl("smime", "-verify", "-inform", "DER", "-in", web / f"{name}.sig", "-content", web / name, "-binary",
                "-purpose", "any", "-CAfile", files.certificate)  # fmt: skip
    unpack(web / "10/Manifest.MoM.tar", tmp_path / "mom")
    assert (tmp_path / "mom/Manifest.MoM.sig").read_bytes() == (web / "10/Manifest.MoM.sig").read_bytes()
    assert "right" in invoke("check", "-S", storage, "--certificate", files.certificate)
    assert "10: needed" in invoke("prune", "-S", storage)
    assert load_signer(key=files.key, certificate=files.certificate).anchors


def test_damage_to_the_published_tree_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "image/10/os-core", CORE)
    process(tmp_path, 10)
    web = tmp_path / "www"
    line = lines(web, 10)["/usr/bin/tool"]
    victim = web / f"10/files/{line.hash}.tar"
    victim.write_bytes((web / f"10/files/{lines(web, 10)['/usr'].hash}.tar").read_bytes())
    (problem,) = check_tree(web, certificate=None, progress=Silence()).problems
    assert line.hash in problem
    (web / "10/Manifest.os-core").write_bytes(b"nonsense")
    (problem,) = check_tree(web, certificate=None, progress=Silence()).problems
    assert "Manifest.os-core" in problem
