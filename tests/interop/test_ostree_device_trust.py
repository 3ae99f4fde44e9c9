"""What the updater takes and refuses: signatures by the real gpg, ed25519, and trees made to break out."""

import base64
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.loopback import serving
from tests.ostree_scene import BRANCH, REMOTE, OstreeDevice, Publisher, ostree, quiet_directory
from tests.tools import need, need_file

from overhaul.dialects.ostree.device.keyfile import read_key_file, write_key_file
from overhaul.dialects.ostree.device.remote import RemoteError
from overhaul.dialects.ostree.device.updating import Mode, Result, run_cycle
from overhaul.dialects.ostree.filez import FileHeader, file_checksum, pack_filez
from overhaul.dialects.ostree.gvariant import Variant, encode
from overhaul.dialects.ostree.layout import object_path
from overhaul.dialects.ostree.objects import (
    Commit,
    ObjectName,
    ObjectType,
    checksum_of,
    encode_commit,
    encode_metadata,
)
from overhaul.errors import TrustError


@dataclass(frozen=True)
class Key:
    home: Path
    identity: str

    @property
    def public(self) -> Path:
        path = self.home / "public.gpg"
        path.write_bytes(self.run("--export", self.identity))
        return path

    def run(self, *arguments: str, data: bytes = b"") -> bytes:
        command = [need("gpg"), "--homedir", str(self.home), "--batch", "--quiet", "--passphrase", "", *arguments]
        return subprocess.run(command, input=data, check=True, capture_output=True).stdout


def make_key(home: Path, identity: str, *options: str, expires: str = "never") -> Key:
    home.mkdir(mode=0o700, parents=True)
    key = Key(home=home, identity=identity)
    key.run(*options, "--pinentry-mode", "loopback", "--quick-generate-key", identity, "ed25519", "sign", expires)
    return key


@pytest.fixture(scope="module")
def keys() -> Iterator[dict[str, Key]]:
    with quiet_directory() as place:
        made = {
            "vendor": make_key(place / "vendor", "vendor@example.org"),
            "thief": make_key(place / "thief", "thief@example.org"),
            "expired": make_key(
                place / "expired", "old@example.org", "--faked-system-time", "20200101T000000!", expires="2d"
            ),
        }
        yield made
        for key in made.values():
            subprocess.run(
                [need("gpgconf"), "--homedir", str(key.home), "--kill", "gpg-agent"], check=True, capture_output=True
            )


@dataclass
class World:
    publisher: Publisher
    device: OstreeDevice

    def head(self) -> str:
        return ostree("rev-parse", f"--repo={self.publisher.repository}", BRANCH).strip()

    def commit_file(self, kind: ObjectType) -> Path:
        name = ObjectName(kind, bytes.fromhex(self.head()))
        return self.publisher.repository / object_path(name)

    def update(self) -> Result:
        return run_cycle(self.device.updater(), Mode.BOTH).result


@pytest.fixture
def world(keys: dict[str, Key]) -> Iterator[World]:
    with quiet_directory() as place:
        vendor = keys["vendor"]
        publisher = Publisher(place / "publisher", gpg_home=vendor.home, gpg_key=vendor.identity)
        with serving(publisher.repository) as server:
            publisher.publish("1")
            device = OstreeDevice.make(place / "device", server.url, keys=vendor.public)
            device.install()
            publisher.publish("2")
            yield World(publisher=publisher, device=device)


def test_a_commit_that_the_vendor_signed_is_taken(world: World) -> None:
    assert world.update() is Result.DEPLOYED
    ostree("show", f"--repo={world.device.repository}", f"{REMOTE}:{BRANCH}")


def test_a_commit_without_a_signature_is_refused(world: World) -> None:
    world.commit_file(ObjectType.COMMITMETA).unlink()
    with pytest.raises(TrustError, match="no signatures"):
        world.update()


def test_a_commit_signed_by_somebody_else_is_refused(world: World, keys: dict[str, Key]) -> None:
    thief = keys["thief"]
    world.publisher.gpg_home, world.publisher.gpg_key = thief.home, thief.identity
    world.publisher.publish("3")
    with pytest.raises(TrustError, match=r"(?i)public key"):
        world.update()


def test_a_signature_of_another_commit_is_refused(world: World) -> None:
    signed = world.commit_file(ObjectType.COMMITMETA).read_bytes()
    world.publisher.gpg_home = None
    world.publisher.publish("3")
    world.commit_file(ObjectType.COMMITMETA).write_bytes(signed)
    with pytest.raises(TrustError, match=r"(?i)bad signature"):
        world.update()


def test_a_signature_by_an_expired_key_is_refused(world: World, keys: dict[str, Key]) -> None:
    expired = keys["expired"]
    world.publisher.gpg_home = None
    world.publisher.publish("3")
    data = world.commit_file(ObjectType.COMMIT).read_bytes()
    signature = expired.run("--faked-system-time", "20200101T120000!", "--detach-sign", "--output", "-", data=data)
    meta = encode_metadata({"ostree.gpgsigs": Variant("aay", (signature,))})
    world.commit_file(ObjectType.COMMITMETA).write_bytes(meta)
    ring = world.device.repository / f"{REMOTE}.trustedkeys.gpg"
    ring.write_bytes(ring.read_bytes() + expired.public.read_bytes())
    with pytest.raises(TrustError, match="expired"):
        world.update()


def test_one_good_signature_among_others_is_enough(world: World, keys: dict[str, Key]) -> None:
    data = world.commit_file(ObjectType.COMMIT).read_bytes()
    signatures = tuple(keys[name].run("--detach-sign", "--output", "-", data=data) for name in ("thief", "vendor"))
    meta = encode_metadata({"ostree.gpgsigs": Variant("aay", signatures)})
    world.commit_file(ObjectType.COMMITMETA).write_bytes(meta)
    assert world.update() is Result.DEPLOYED


def test_a_remote_that_wants_a_signed_summary_gets_one_or_nothing(world: World) -> None:
    path = world.device.repository / "config"
    content = read_key_file(path)
    content.set(f'remote "{REMOTE}"', "gpg-verify-summary", "true")
    write_key_file(path, content)
    signature = world.publisher.repository / "summary.sig"
    good = signature.read_bytes()
    signature.unlink()
    with pytest.raises(TrustError, match="summary"):
        world.update()
    signature.write_bytes(good)
    summary = world.publisher.repository / "summary"
    data = summary.read_bytes()
    summary.write_bytes(data.replace(b"example/x86_64/standard", b"example/x86_64/standerd"))
    with pytest.raises(TrustError, match="summary"):
        world.update()
    summary.write_bytes(data)
    assert world.update() is Result.DEPLOYED


def sign_ed25519(world: World, secret: Ed25519PrivateKey) -> None:
    data = world.commit_file(ObjectType.COMMIT).read_bytes()
    meta = encode_metadata({"ostree.sign.ed25519": Variant("aay", (secret.sign(data),))})
    world.commit_file(ObjectType.COMMITMETA).write_bytes(meta)


def test_ed25519_signatures_are_checked_when_the_remote_asks_for_them(world: World) -> None:
    secret, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = base64.b64encode(secret.public_key().public_bytes_raw()).decode()
    path = world.device.repository / "config"
    content = read_key_file(path)
    group = f'remote "{REMOTE}"'
    for key, value in (("gpg-verify", "false"), ("sign-verify", "ed25519"), ("verification-ed25519-key", public)):
        content.set(group, key, value)
    write_key_file(path, content)
    with pytest.raises(TrustError, match="ed25519"):
        world.update()
    sign_ed25519(world, other)
    with pytest.raises(TrustError, match="trusted key"):
        world.update()
    sign_ed25519(world, secret)
    assert world.update() is Result.DEPLOYED


@pytest.mark.parametrize("name", ["../evil", "..", "a/b", ".", ""])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_signed_tree_whose_names_break_out_is_refused(
    world: World, keys: dict[str, Key], name: str, kind: str
) -> None:
    repository = world.publisher.repository

    def store(object_type: ObjectType, checksum: bytes, data: bytes) -> bytes:
        path = repository / object_path(ObjectName(object_type, checksum))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return checksum

    header = FileHeader(uid=0, gid=0, mode=0o100644)
    content = b"evil\n"
    file = store(ObjectType.FILE, file_checksum(header, content), b"".join(pack_filez(header, content)))
    meta = bytes.fromhex("446a0ef11b7cc167f3b603e585c7eeeeb675faa412d5ec73f62988eb0b6c5488")
    store(ObjectType.DIRMETA, meta, bytes.fromhex("0000000000000000000041ed"))
    empty = store(ObjectType.DIRTREE, hashlib.sha256(b"\0").digest(), b"\0")
    members = ([(name, file)], []) if kind == "file" else ([], [(name, empty, meta)])
    data = encode("(a(say)a(sayay))", members)
    root = store(ObjectType.DIRTREE, checksum_of(data), data)
    bound = {"ostree.ref-binding": Variant("as", (BRANCH,))}
    commit = encode_commit(Commit(timestamp=1_800_000_000, root_tree=root, root_meta=meta, metadata=bound))
    checksum = store(ObjectType.COMMIT, checksum_of(commit), commit)
    signature = keys["vendor"].run("--detach-sign", "--output", "-", data=commit)
    store(ObjectType.COMMITMETA, checksum, encode_metadata({"ostree.gpgsigs": Variant("aay", (signature,))}))
    (repository / "refs/heads" / BRANCH).write_text(checksum.hex() + "\n")
    (repository / "summary").unlink()
    before = world.device.deployed()
    with pytest.raises(TrustError, match="file name"):
        world.update()
    assert world.device.deployed() == before
    world.device.fsck()
    assert not list(world.device.directory.rglob("evil"))


def test_a_commit_is_judged_again_when_it_is_here_already(world: World) -> None:
    # Whoever can write the repository's objects but has no key brings nothing in by that.
    ostree("pull-local", f"--repo={world.device.repository}", world.publisher.repository, world.head())
    world.commit_file(ObjectType.COMMITMETA).unlink()
    with pytest.raises(TrustError):
        world.update()


def test_keys_may_lie_where_the_remote_says(world: World, keys: dict[str, Key]) -> None:
    ring = world.device.repository / f"{REMOTE}.trustedkeys.gpg"
    elsewhere = world.device.directory / "keys"
    elsewhere.mkdir()
    armored = keys["vendor"].run("--armor", "--export", keys["vendor"].identity)
    (elsewhere / "vendor.asc").write_bytes(armored)
    ring.unlink()
    with pytest.raises(TrustError, match="key ring is empty"):
        world.update()
    path = world.device.repository / "config"
    content = read_key_file(path)
    content.set(f'remote "{REMOTE}"', "gpgkeypath", str(elsewhere))
    write_key_file(path, content)
    assert world.update() is Result.DEPLOYED


#: What Debian's package of ostree brings along.
_NOTE = Path("/usr/share/ostree/trusted.gpg.d/README-gpg")


def test_every_remote_trusts_the_systems_keys_whatever_lies_beside_them(world: World, keys: dict[str, Key]) -> None:
    system = world.device.directory / "root/usr/share/ostree/trusted.gpg.d"
    system.mkdir(parents=True)
    shutil.copy(need_file(_NOTE, package="ostree"), system)
    ring = world.device.repository / f"{REMOTE}.trustedkeys.gpg"
    ring.rename(system / "vendor.gpg")
    assert world.update() is Result.DEPLOYED


def test_a_file_that_is_no_key_ring_is_named(world: World) -> None:
    ring = world.device.repository / f"{REMOTE}.trustedkeys.gpg"
    ring.write_text("no keys\n")
    with pytest.raises(RemoteError, match=rf"{ring}.*holds no OpenPGP keys"):
        world.update()


def test_system_remotes_are_known(world: World) -> None:
    path = world.device.repository / "config"
    content = read_key_file(path)
    (group,) = [name for name in content.groups() if name.startswith("remote")]
    directory = world.device.directory / "root/etc/ostree/remotes.d"
    directory.mkdir(parents=True)
    lines = "".join(f"{key}={value}\n" for key, value in content.items(group).items())
    (directory / "updates.conf").write_text(f"[{group}]\n{lines}")
    text = path.read_text()
    path.write_text(text[: text.index(f"[{group}]")])
    assert world.update() is Result.DEPLOYED
