"""A server or mirror in the hands of a thief, who has no key: whatever it serves, nothing of it enters the system.

Where the thief only withholds or damages what others can replace, the update succeeds all the same; where not, the
command ends with the documented exit code and the system is what it was.
"""

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from backports import zstd
from tests.loopback import serving
from tests.swupd_device import SwupdDevice, assert_system, expect
from tests.swupd_keys import self_signed
from tests.swupd_site import Packing, Site, Tree, archive, directory, file, link

from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.manifest import Manifest, encode_manifest, parse_manifest
from overhaul.dialects.swupd.signing import load_signer

OLD: Tree = {"/usr/bin": directory(), "/usr/bin/tool": file(b"tool" * 100), "/usr/lib/other": file("other")}
NEW: Tree = {**OLD, "/usr/bin/tool": file(b"tool" * 50 + b"new" + b"tool" * 50), "/usr/lib/new": file("new")}
_PACKS, _NO_PACKS = Packing(), Packing(packs=False)


@dataclass
class World:
    """A device on version 10, a repository with version 20, and files outside that nothing may touch."""

    site: Site
    device: SwupdDevice
    outside: Path

    def assert_untouched(self) -> None:
        """Check that the system is version 10 and nothing outside has changed."""
        tree = self.site.versions[0].trees["os-core"]
        assert_system(self.device.root, tree)
        assert self.outside.read_text() == "outside"
        assert sorted(path.name for path in self.outside.parent.iterdir()) == ["device", "outside", "www"]


@pytest.fixture
def make(tmp_path: Path) -> Callable[[Packing], World]:
    def build(packing: Packing) -> World:
        site = Site(tmp_path / "www")
        site.publish(10, {"os-core": OLD})
        device = SwupdDevice.of(tmp_path / "device", site)
        device.install()
        site.publish(20, {"os-core": NEW}, packing=packing)
        (tmp_path / "outside").write_text("outside")
        return World(site, device, tmp_path / "outside")

    return build


def _member(name: str, kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


#: What a thief puts into an archive, for the hash `H` of an object and the path `O` of a file outside.
_TRICKS: dict[str, Callable[[str, str], list[tuple[tarfile.TarInfo, bytes]]]] = {
    "another content": lambda name, _outside: [(file("bad").member(name), b"bad")],
    "another mode": lambda name, _outside: [(file(NEW["/usr/bin/tool"].content, 0o4755).member(name),
                                             NEW["/usr/bin/tool"].content)],
    "an absolute name": lambda _name, outside: [(file("bad").member(outside), b"bad")],
    "a name that climbs": lambda _name, _outside: [(file("bad").member("../" * 12 + "outside"), b"bad")],
    "a climb behind the name": lambda name, _outside: [(file("bad").member(f"{name}/../../../../outside"), b"bad")],
    "a link and a file behind it": lambda name, outside: [
        (link(os.path.dirname(outside)).member(name), b""),  # noqa: PTH120
        (file("bad").member(f"{name}/outside"), b"bad"),
    ],
    "a link in its place": lambda name, outside: [(link(outside).member(name), b""),
                                                  (file("bad").member(name), b"bad")],
    "a hard link out": lambda name, outside: [(_member(name, tarfile.LNKTYPE, outside), b"")],
    "a hard link up": lambda name, _outside: [(_member(name, tarfile.LNKTYPE, "../../../../outside"), b"")],
    "a device": lambda name, _outside: [(_member(name, tarfile.BLKTYPE), b"")],
    "a pipe": lambda name, _outside: [(_member(name, tarfile.FIFOTYPE), b"")],
    "nothing": lambda _name, _outside: [],
    "two members": lambda name, _outside: [
        (NEW["/usr/bin/tool"].member(name), NEW["/usr/bin/tool"].content),
        (file("bad").member("f" * 64), b"bad"),
    ],
    "./ before the name": lambda name, _outside: [
        (NEW["/usr/bin/tool"].member(f"./{name}"), NEW["/usr/bin/tool"].content)
    ],
}  # fmt: skip


@pytest.mark.parametrize("trick", _TRICKS)
def test_a_full_file_with_anything_else_ends_the_update(make: Callable[[Packing], World], trick: str) -> None:
    world = make(_NO_PACKS)
    place = world.site.fullfile("/usr/bin/tool")
    place.write_bytes(archive(_TRICKS[trick](place.stem, str(world.outside))))
    ran = world.device.run("update")
    assert ran.code in {Exit.NO, Exit.UNTAR}, ran
    world.assert_untouched()


@pytest.mark.parametrize("trick", _TRICKS)
def test_a_pack_with_anything_else_is_only_slower(make: Callable[[Packing], World], trick: str) -> None:
    world = make(_PACKS)
    name = world.site.fullfile("/usr/bin/tool").stem
    members = [
        (_renamed(info, f"staged/{info.name}" if info.name == name else info.name), content)
        for info, content in _TRICKS[trick](name, str(world.outside))
    ]
    (world.site.directory / "20/pack-os-core-from-10.tar").write_bytes(archive(members))
    expect(world.device.run("update"), Exit.OK)
    assert_system(world.device.root, world.site.tree())
    assert world.outside.read_text() == "outside"


def _renamed(info: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    info.name = name
    return info


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress, bz2.compress, zstd.compress])
def test_archives_of_all_kinds_are_read_and_bombs_of_all_kinds_are_refused(
    make: Callable[[Packing], World], compress: Callable[[bytes], bytes]
) -> None:
    world = make(_NO_PACKS)
    place = world.site.fullfile("/usr/bin/tool")
    good = place.read_bytes()
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w") as tar:
        tar.addfile(_member(place.stem, tarfile.REGTYPE, size=40 << 20), io.BytesIO(bytes(40 << 20)))
    place.write_bytes(compress(bomb.getvalue()))
    assert world.device.run("update").code in {Exit.NO, Exit.UNTAR}
    world.assert_untouched()
    place.write_bytes(compress(lzma.decompress(good)))
    expect(world.device.run("update"), Exit.OK)
    assert_system(world.device.root, world.site.tree())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("what", ["files", "Manifest.os-core.tar", "Manifest.MoM.tar"])
def test_what_is_cut_short_is_not_used(make: Callable[[Packing], World], what: str, share: float) -> None:
    world = make(Packing(packs=False, manifest_deltas=False))
    place = world.site.directory / "20" / what
    for path in place.iterdir() if place.is_dir() else [place]:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
    if world.device.run("update").code is Exit.OK:
        # Only what follows the last byte of content was missing.
        assert share == 0.9
        assert_system(world.device.root, world.site.tree())
    else:
        world.assert_untouched()


def test_a_version_without_signature_is_refused_unless_the_flag_says_otherwise(
    make: Callable[[Packing], World],
) -> None:
    world = make(Packing(signature_in_tar=False))
    signature = world.site.directory / "20/Manifest.MoM.sig"
    good = signature.read_bytes()
    signature.unlink()
    assert world.device.run("update").code is Exit.MOM
    world.assert_untouched()
    signature.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert world.device.run("update").code is Exit.MOM
    world.assert_untouched()
    # Nothing but --nosigcheck switches it off: neither the flag for version files nor one for the clock.
    assert world.device.run("update", "--nosigcheck-latest", "--ignore-time", "--yes").code is Exit.MOM
    world.assert_untouched()
    expect(world.device.run("update", "--nosigcheck"), Exit.OK)


def test_a_version_signed_by_somebody_else_is_refused(make: Callable[[Packing], World], tmp_path: Path) -> None:
    world = make(_PACKS)
    other = tmp_path / "www" / "other"
    other.mkdir()
    keys = self_signed(other, name="thief")
    thief = load_signer(key=keys.key, certificate=keys.certificate)
    data = (world.site.directory / "20/Manifest.MoM").read_bytes()
    world.site.sign_mom(20, data, signer=thief)
    assert world.device.run("update").code is Exit.MOM
    world.site.sign_mom(20, data)
    world.site.point(20, signer=thief)
    assert world.device.run("update").code is Exit.SIGNATURE
    world.assert_untouched()


def test_the_next_certificate_of_a_system_is_trusted_too(make: Callable[[Packing], World], tmp_path: Path) -> None:
    world = make(_PACKS)
    other = tmp_path / "www" / "other"
    other.mkdir()
    keys = self_signed(other, name="next")
    following = load_signer(key=keys.key, certificate=keys.certificate)
    world.site.sign_mom(20, (world.site.directory / "20/Manifest.MoM").read_bytes(), signer=following)
    world.site.point(20, signer=following)
    mine = other / "Swupd_Root.pem"
    shutil.copy(world.device.certificate, mine)
    world.device.certificate = mine
    assert world.device.run("update").code is Exit.SIGNATURE
    shutil.copy(keys.certificate, other / "Swupd_Root.pem.alt")
    expect(world.device.run("update"), Exit.OK)


def test_without_its_certificate_a_device_takes_nothing(make: Callable[[Packing], World], tmp_path: Path) -> None:
    world = make(_PACKS)
    world.device.certificate = tmp_path / "nowhere.pem"
    assert world.device.run("update").code is Exit.SIGNATURE
    world.assert_untouched()


def test_an_old_version_replayed_is_not_gone_back_to(make: Callable[[Packing], World]) -> None:
    world = make(_PACKS)
    expect(world.device.run("update"), Exit.OK)
    world.site.point(10)
    expect(world.device.run("update"), Exit.OK)
    assert world.device.version() == "20"
    # The list of an old version under the name of a new one is recognised by the version it states.
    world.site.point(30)
    shutil.copytree(world.site.directory / "10", world.site.directory / "30")
    assert world.device.run("update").code is Exit.MOM
    assert world.device.version() == "20"


def _mom_with(world: World, change: Callable[[Manifest], Manifest]) -> None:
    data = (world.site.directory / "20/Manifest.MoM").read_bytes()
    world.site.sign_mom(20, encode_manifest(change(parse_manifest(data, name="MoM"))))


def test_a_version_of_another_format_is_refused(make: Callable[[Packing], World]) -> None:
    world = make(_PACKS)
    _mom_with(world, lambda mom: Manifest(format=5, version=mom.version, entries=mom.entries))
    assert world.device.run("update").code is Exit.MOM
    world.assert_untouched()


def test_a_bundle_manifest_that_is_not_the_one_the_mom_names_is_refused(make: Callable[[Packing], World]) -> None:
    world = make(Packing(manifest_deltas=False))
    place = world.site.directory / "20/Manifest.os-core.tar"
    data = (world.site.directory / "20/Manifest.os-core").read_bytes().replace(b"/usr/lib/new", b"/usr/lib/bad")
    place.write_bytes(archive([(file(data).member("Manifest.os-core"), data)]))
    assert world.device.run("update").code is Exit.MANIFEST
    world.assert_untouched()


def test_a_bad_manifest_delta_is_only_slower(make: Callable[[Packing], World]) -> None:
    world = make(_PACKS)
    for delta in (world.site.directory / "20").glob("Manifest-*-delta-from-*"):
        data = bytearray(delta.read_bytes())
        data[-3] ^= 0xFF
        delta.write_bytes(data)
    expect(world.device.run("update"), Exit.OK)
    assert_system(world.device.root, world.site.tree())


def test_an_endless_answer_is_cut_off(make: Callable[[Packing], World]) -> None:
    world = make(_NO_PACKS)
    with serving(world.site.directory) as server:
        server.behave("version/format4/latest", endless=True)
        world.device.url = server.url
        ran = world.device.run("update", "--allow-insecure-http")
    assert ran.code in {Exit.DOWNLOAD, Exit.NO_CONNECTION}, ran
    world.assert_untouched()


def test_a_download_that_breaks_off_is_gone_on_with(make: Callable[[Packing], World]) -> None:
    world = make(_PACKS)
    with serving(world.site.directory) as server:
        server.behave("20/pack-os-core-from-10.tar", cut_after=[100])
        world.device.url = server.url
        expect(world.device.run("update", "--allow-insecure-http", "--max-retries=2", "--retry-delay=0"), Exit.OK)
        assert server.ranges("20/pack-os-core-from-10.tar") == ["bytes=100-"]
    assert_system(world.device.root, world.site.tree())


def test_plain_http_is_refused_without_the_words_that_allow_it(make: Callable[[Packing], World]) -> None:
    world = make(_PACKS)
    world.device.url = "http://127.0.0.1:9"
    assert world.device.run("update").code is Exit.BAD_OPTION
    world.assert_untouched()


def test_nothing_is_written_behind_a_link_that_took_a_directorys_place(make: Callable[[Packing], World]) -> None:
    world = make(_PACKS)
    elsewhere = world.device.root / "elsewhere"
    shutil.move(world.device.root / "usr/bin", elsewhere)
    (world.device.root / "usr/bin").symlink_to("../elsewhere")
    before = (elsewhere / "tool").read_bytes()
    assert world.device.run("update").code is Exit.UNEXPECTED
    assert (elsewhere / "tool").read_bytes() == before
    assert world.device.version() == "10"


def test_a_deleted_path_behind_a_link_is_not_deleted_elsewhere(tmp_path: Path) -> None:
    site = Site(tmp_path / "www")
    site.publish(10, {"os-core": {"/usr/lib64": directory(), "/usr/lib64/so": file("64"), "/usr/lib/so": file("so")}})
    device = SwupdDevice.of(tmp_path / "device", site)
    device.install()
    site.publish(20, {"os-core": {"/usr/lib64": link("lib"), "/usr/lib/so": file("so")}})
    (device.root / "usr/lib64/mine").write_text("mine")
    expect(device.run("update"), Exit.OK)
    assert (device.root / "usr/lib/so").read_text() == "so"
    assert (device.root / "usr/lib64").is_symlink()
    aside = [path for path in (device.root / "usr").iterdir() if path.name.startswith(".deleted.")]
    assert [[inside.name for inside in path.iterdir()] for path in aside] == [["mine"]]
