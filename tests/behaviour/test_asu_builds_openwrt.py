"""Images of OpenWrt from request to signed artefact: worker, sandbox and signer are real, ImageBuilder a stand-in."""

import hashlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from tests.gpg_keys import gpg, gpg_home
from tests.imagebuilder import REVISION, TARGET, UPSTREAM, StandInUpstream, compressed
from tests.tools import need
from tests.waiting import until

from overhaul.builds.builder import Built, Workplace
from overhaul.builds.expecting import ImageBuilderExpectation
from overhaul.builds.imagebuilders import ImageBuilders, UnsignedChecksumsError, UpstreamKeys
from overhaul.builds.memory import MemoryQueue
from overhaul.builds.openwrt import OpenWrtBuilder
from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildRecord, BuildState, QueueLimits
from overhaul.builds.results import BuildFailedError, BuildFailure, BuildResult, FailureKind, Phase
from overhaul.builds.sandbox import Limits
from overhaul.builds.signer_process import SignerServer, SocketSigner, UnreachableSignerError
from overhaul.builds.signing import Claim, KeySigner, RefusedClaimError, Signer, Statement
from overhaul.builds.store import ArtefactStore
from overhaul.builds.worker import Worker
from overhaul.trust.usign import generate_usign_key, verify_usign

BOARD = "tplink_archer-c7-v2"
KEY = generate_usign_key()
MIB = 1 << 20


class Silent:
    """Follows a build and says nothing."""

    def phase(self, phase: Phase) -> None:
        pass

    def log(self, text: str) -> None:
        pass

    def check(self) -> None:
        pass


@dataclass
class Works:
    """Everything that makes images, in one directory."""

    directory: Path
    upstream: StandInUpstream
    queue: MemoryQueue
    store: ArtefactStore
    builder: OpenWrtBuilder
    signer: KeySigner
    worker: Worker

    def submit(self, *packages: str, **changes: object) -> BuildRecord:
        recipe = make_recipe(*packages, **changes)
        return self.queue.submit(recipe, names=[recipe.key[:12]], client="c").build

    def build(self, *packages: str, **changes: object) -> BuildRecord:
        build = self.submit(*packages, **changes)
        assert self.worker.run_one()
        return self.queue.find(build.build_id)

    def built(self, *packages: str, **changes: object) -> BuildResult:
        end = self.build(*packages, **changes)
        assert end.result is not None, end.failure
        return end.result

    def failed(self, *packages: str, **changes: object) -> BuildFailure:
        end = self.build(*packages, **changes)
        assert end.failure is not None
        assert not list(self.store.served.iterdir())
        assert not list((self.store.root / "incoming").iterdir())
        assert not list(self.worker.directory.iterdir())
        return end.failure


def make_recipe(*packages: str, **changes: object) -> Recipe:
    base = Recipe(
        builder="openwrt", distribution="openwrt", version="23.05.5", target=TARGET, profile=BOARD, packages=packages
    )
    return msgspec.convert({**msgspec.to_builtins(base), **changes}, Recipe, strict=False)


@pytest.fixture
def works(tmp_path: Path) -> Works:
    need("bwrap")
    need("make")
    upstream = StandInUpstream()
    upstream.put()
    queue = MemoryQueue(limits=QueueLimits(lease_s=60.0))
    store = ArtefactStore(tmp_path / "artefacts")
    imagebuilders = ImageBuilders(
        tmp_path / "imagebuilders",
        upstream_url=UPSTREAM,
        keys=UpstreamKeys(usign=(upstream.key.public,)),
        open_fetcher=lambda: upstream,
    )
    limits = Limits(time_s=60.0, memory_bytes=256 * MIB, disk_bytes=64 * MIB, file_bytes=256 * MIB, processes=64)
    builder = OpenWrtBuilder(imagebuilders=imagebuilders, limits=limits, network=False)
    signer = KeySigner(
        key=KEY,
        queue=queue,
        expectations={"openwrt": ImageBuilderExpectation(imagebuilders)},
        incoming=store.root / "incoming",
    )
    worker = Worker(name="w", queue=queue, store=store, builders=[builder], signer=signer, directory=tmp_path / "work")
    return Works(tmp_path, upstream, queue, store, builder, signer, worker)


def test_a_request_becomes_a_signed_image(works: Works) -> None:
    result = works.built("vim", "tmux", "base-files", "busybox", diff_packages=True)

    recipe = make_recipe("vim", "tmux", "base-files", "busybox", diff_packages=True)
    assert result.artefact == recipe.key[:12]
    assert result.manifest == {
        "base-files": "1", "busybox": "1.36", "kernel": "5.15.167", "tmux": "3.4", "vim": "9.1-1",
        "vim-runtime": "9.1-1",
    }  # fmt: skip
    names = hashlib.sha256(" ".join(sorted(result.manifest)).encode()).hexdigest()[:12]
    assert result.command == (
        "make", "image", f"PROFILE={BOARD}",
        "PACKAGES=-dnsmasq -kmod-ath10k-ct -opkg vim tmux base-files busybox",
        f"EXTRA_IMAGE_NAME={names}", f"BIN_DIR=/builder/{result.artefact}",
    )  # fmt: skip
    assert result.command_packages[:4] == ("-dnsmasq", "-kmod-ath10k-ct", "-opkg", "vim")
    assert result.document["id"] == BOARD
    assert result.document["version_code"] == REVISION
    assert "profiles" not in result.document
    assert {(image.type, image.filesystem) for image in result.images} == {
        (kind, filesystem) for kind in ("factory", "sysupgrade") for filesystem in ("squashfs", "ext4")
    }
    for image in result.images:
        data = works.store.path(result.artefact, image.name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == image.sha256 == image.sha256_unsigned
    assert "Calculating checksums" in result.stdout
    assert "Packages: base-files" in works.queue.read_log(1).text
    assert works.queue.find(1).phase is Phase.DONE


def test_the_signatures_bind_files_recipe_builder_and_manifest(works: Works) -> None:
    result = works.built("vim")
    place = works.store.served / result.artefact
    sums, statement = (place / "sha256sums").read_bytes(), (place / "build.json").read_bytes()
    verify_usign(sums, (place / "sha256sums.sig").read_text(), (KEY.public,), name="sums")
    verify_usign(statement, (place / "build.json.sig").read_text(), (KEY.public,), name="statement")

    said = msgspec.json.decode(statement, type=Statement)
    assert said.recipe == make_recipe("vim")
    assert said.recipe_key == make_recipe("vim").key
    assert said.builder_digest == result.builder_digest == works.upstream.put()
    assert said.manifest_sha256 == result.manifest_sha256
    listed = {line.split(" *")[1]: line.split(" *")[0] for line in sums.decode().splitlines()}
    assert listed == {file.name: file.sha256 for file in said.files}
    assert {image.name for image in result.images} < set(listed)
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "sha256sums"], cwd=place, capture_output=True, check=False
    )
    assert check.returncode == 0


def test_the_second_identical_request_costs_nothing(works: Works) -> None:
    first = works.built("vim")
    asked = len(works.upstream.asked)
    again = works.queue.submit(make_recipe("vim"), names=["other"], client="somebody else")

    assert not again.is_new
    assert again.build.result == first
    assert not works.worker.run_one()
    assert len(works.upstream.asked) == asked


def test_equal_recipes_make_equal_images_and_defaults_change_them(works: Works) -> None:
    one = works.built("vim", "tmux")
    works.queue.expire(1)
    same = works.built("tmux", "vim")
    other = works.built("vim", "tmux", defaults="echo first boot\n", rootfs_size_mb=256, filesystem="ext4")

    assert {image.sha256 for image in one.images} == {image.sha256 for image in same.images}
    assert other.command[6:] == ("FILES=/builder/asu-files", "ROOTFS_PARTSIZE=256", "ROOTFS_FILESYSTEM=ext4")
    assert {image.filesystem for image in other.images} == {"ext4"}
    image = works.store.path(other.artefact, other.images[0].name).read_text()
    assert "etc/uci-defaults/99-asu-defaults" in image
    assert "echo first boot" in image


def test_names_of_2019_are_made_of_the_manifest(works: Works) -> None:
    result = works.built("vim", naming="manifest", defaults="echo hi\n")

    assert f"EXTRA_IMAGE_NAME={result.manifest_sha256[:15]}-ab0850" in result.command
    assert "99-server-defaults" in works.store.path(result.artefact, result.images[0].name).read_text()


@pytest.mark.parametrize("uses_apk", [False, True])
def test_impossible_selections_name_their_packages(works: Works, uses_apk: bool) -> None:
    works.upstream.put(uses_apk=uses_apk)
    missing = works.failed("nope", "vim", "nada")
    conflicts = works.failed("nginx", "uhttpd", "nope")
    clash = works.failed("dnsmasq-full")

    assert missing.kind is FailureKind.IMPOSSIBLE_PACKAGES
    assert missing.detail == "Impossible package selection: missing (nada, nope)"
    assert missing.missing == ("nada", "nope")
    assert conflicts.detail == "Impossible package selection: missing (nope) conflicts (nginx, uhttpd)"
    assert clash.conflicts == ("dnsmasq", "dnsmasq-full")


@pytest.mark.parametrize(
    ("changes", "kind", "detail"),
    [
        ({"revision": "r1-a"}, FailureKind.WRONG_REVISION, f"Received incorrect version {REVISION} (requested r1-a)"),
        (
            {"packages": ["vim"], "package_versions": [["vim", "9.0"]]},
            FailureKind.PACKAGE_VERSION,
            "Impossible package selection: vim version not as requested: 9.0 vs. 9.1-1",
        ),
        (
            {"package_versions": [["tmux", "3.4"]]},
            FailureKind.PACKAGE_VERSION,
            "Impossible package selection: tmux not in manifest",
        ),
        (
            {"profile": "8dev_carambola2", "packages": ["big"]},
            FailureKind.TOO_BIG,
            "Selected packages exceed device storage",
        ),
        (
            {"packages": ["crash"]},
            FailureKind.BUILD_FAILED,
            "Error while building firmware. See stdout/stderr",
        ),
        ({"profile": "unknown"}, FailureKind.IMPOSSIBLE_PACKAGES, "Impossible package selection"),
        ({"version": "22.03.0"}, FailureKind.BUILDER_MISSING, None),
    ],
)  # fmt: skip
def test_failures_say_what_clients_know(
    works: Works, changes: dict[str, object], kind: FailureKind, detail: str | None
) -> None:
    failure = works.failed(**changes)

    assert failure.kind is kind
    assert detail is None or failure.detail == detail


def test_a_device_without_sysupgrade_still_has_its_other_images(works: Works) -> None:
    assert {image.type for image in works.built(profile="no-sysupgrade").images} == {"factory"}


def test_repositories_and_keys_are_written_before_anything_runs(works: Works) -> None:
    """The build is stopped after its set-up by a revision that cannot be; its copy is looked at on the way."""
    seen: dict[str, str] = {}

    class Looking(Silent):
        def phase(self, phase: Phase) -> None:
            if phase is Phase.VALIDATE_REVISION:
                for path in (place.directory / "builder").rglob("*"):
                    if (path.is_file() and path.parent.name == "keys") or path.name.startswith("repositories"):
                        seen[path.name] = path.read_text()

    recipe = make_recipe(
        revision="stop",
        repositories=[["zeta", "https://z.test/p"], ["alpha", "https://a.test/p"]],
        repositories_mode="append",
        repository_keys=[
            "untrusted comment: x\nRWSrHfFmlHslUcLbXFIRp+eEikWF9z1N77IJiX5Bt/nJd1a/x+L+SU89",
            "-----BEGIN x",
        ],
    )
    place = Workplace(directory=works.directory / "place", artefact="a", watcher=Looking())
    place.directory.mkdir()
    with pytest.raises(BuildFailedError):
        works.builder.build(recipe, place)

    assert seen["repositories.conf"] == (
        "src/gz base https://upstream.test/base\nsrc imagebuilder file:packages\n"
        "src/gz alpha https://a.test/p\nsrc/gz zeta https://z.test/p\noption check_signature\n"
    )
    assert seen["ab1df166947b2551"].endswith("RWSrHfFmlHslUcLbXFIRp+eEikWF9z1N77IJiX5Bt/nJd1a/x+L+SU89\n")
    assert seen["custom-1.pem"] == "-----BEGIN x"


@pytest.mark.parametrize("compression", ["xz", "zstd"])
def test_an_imagebuilder_is_downloaded_once_until_upstream_signs_another(works: Works, compression: str) -> None:
    works.upstream.put(compression=compression)
    builders = works.builder.imagebuilders
    first = builders.open("23.05.5", TARGET, Silent())
    archives = [url for url in works.upstream.asked if "Linux-x86_64" in url]
    assert builders.open("23.05.5", TARGET, Silent()) == first
    assert [url for url in works.upstream.asked if "Linux-x86_64" in url] == archives
    assert len(archives) == 1
    assert (first.directory / "Makefile").exists()

    works.upstream.put(compression=compression, text="# another day\n")
    second = builders.open("23.05.5", TARGET, Silent())
    assert second.digest != first.digest
    assert builders.forget(unused_since=2**40) == 2
    assert not second.directory.exists()


def test_checksums_count_only_with_a_signature_of_a_pinned_key(works: Works) -> None:
    base = f"{UPSTREAM}/releases/23.05.5/targets/{TARGET}/sha256sums"
    good = works.upstream.files[f"{base}.sig"]
    cases: dict[str, bytes | None] = {
        "no signature": None,
        "another key": generate_usign_key().sign(works.upstream.files[base]).encode(),
        "other bytes": works.upstream.key.sign(b"other").encode(),
        "nonsense": b"\xff\x00nonsense",
    }
    for name, signature in cases.items():
        if signature is None:
            del works.upstream.files[f"{base}.sig"]
        else:
            works.upstream.files[f"{base}.sig"] = signature
        with pytest.raises(UnsignedChecksumsError):
            works.builder.imagebuilders.open("23.05.5", TARGET, Silent())
        assert name
    # One good signature does not make up for a bad one beside it.
    works.upstream.files |= {f"{base}.sig": good, f"{base}.asc": b"nonsense"}
    with pytest.raises(UnsignedChecksumsError):
        works.builder.imagebuilders.open("23.05.5", TARGET, Silent())
    assert works.failed("vim").kind is FailureKind.SETUP_FAILED
    assert not [path for path in (works.directory / "imagebuilders").iterdir() if len(path.name) >= 64]


def test_openpgp_signatures_count_by_their_fingerprint(works: Works, tmp_path: Path) -> None:
    need("gpgv")
    base = f"{UPSTREAM}/releases/23.05.5/targets/{TARGET}/sha256sums"
    del works.upstream.files[f"{base}.sig"]
    keyring = tmp_path / "ring.gpg"
    with gpg_home("Stand-in <stand-in@example.org>") as home:
        listed = gpg(home, "--list-keys", "--with-colons").decode().splitlines()
        fingerprint = next(line.split(":")[9] for line in listed if line[:3] == "fpr")
        keyring.write_bytes(gpg(home, "--export"))
        works.upstream.files[f"{base}.asc"] = gpg(home, "--armor", "--detach-sign", data=works.upstream.files[base])

    def builders(fingerprints: tuple[str, ...]) -> ImageBuilders:
        keys = UpstreamKeys(keyrings=(keyring,), fingerprints=fingerprints)
        return ImageBuilders(tmp_path / "ib", upstream_url=UPSTREAM, keys=keys, open_fetcher=lambda: works.upstream)

    assert builders((fingerprint,)).open("23.05.5", TARGET, Silent()).directory.exists()
    with pytest.raises(UnsignedChecksumsError, match="not pinned"):
        builders(("0" * 40,)).digest("23.05.5", TARGET)
    works.upstream.files[base] += b"\n"
    with pytest.raises(UnsignedChecksumsError):
        builders((fingerprint,)).digest("23.05.5", TARGET)


def test_an_archive_that_reaches_outside_reaches_nothing(works: Works, tmp_path: Path) -> None:
    import io
    import tarfile

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name in ("ib/../../../escaped", "ib//../escaped", "ib/link/escaped"):
            if "link" in name:
                link = tarfile.TarInfo("ib/link")
                link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
                archive.addfile(link)
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    data = compressed(plain.getvalue(), "xz")
    base = f"{UPSTREAM}/releases/23.05.5/targets/{TARGET}"
    sums = f"{hashlib.sha256(data).hexdigest()} *openwrt-imagebuilder-x.tar.xz\n".encode()
    works.upstream.files |= {
        f"{base}/openwrt-imagebuilder-x.tar.xz": data,
        f"{base}/sha256sums": sums,
        f"{base}/sha256sums.sig": works.upstream.key.sign(sums).encode(),
    }

    assert works.failed("vim").kind is FailureKind.SETUP_FAILED
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("package", "kind"),
    [
        ("evil-network", FailureKind.BUILD_FAILED),
        ("evil-outside", FailureKind.BUILD_FAILED),
        ("evil-symlink", FailureKind.SIGNATURE_REFUSED),
        ("evil-directory", FailureKind.NO_DOCUMENT),
        ("evil-pipe", FailureKind.SIGNATURE_REFUSED),
        ("evil-name", FailureKind.SIGNATURE_REFUSED),
        ("evil-signature", FailureKind.SIGNATURE_REFUSED),
        ("evil-disk", FailureKind.LIMIT),
        ("evil-memory", FailureKind.LIMIT),
        ("slow", FailureKind.TIMED_OUT),
    ],
)
def test_hostile_packages_end_their_own_build_and_leave_nothing(works: Works, package: str, kind: FailureKind) -> None:
    limits = replace(works.builder.limits, time_s=3.0 if package == "slow" else 60.0)
    works.worker = replace(works.worker, builders=[replace(works.builder, limits=limits)])
    failure = works.failed(package)

    if kind is FailureKind.NO_DOCUMENT:
        assert failure.kind in {kind, FailureKind.BUILD_FAILED}
    else:
        assert failure.kind is kind, failure
    assert b"evil" not in Path("/etc/passwd").read_bytes()
    works.worker = replace(works.worker, builders=[works.builder])
    assert works.built("vim").images


def test_a_fork_bomb_in_a_package_ends_with_its_build(works: Works) -> None:
    limits = replace(works.builder.limits, time_s=3.0, processes=32)
    works.worker = replace(works.worker, builders=[replace(works.builder, limits=limits)])
    failure = works.failed("evil-fork")
    # Whichever limit it runs into first; many small processes are much memory too.
    assert failure.kind in {FailureKind.TIMED_OUT, FailureKind.BUILD_FAILED, FailureKind.LIMIT}, failure


def test_a_flood_of_output_is_cut(works: Works) -> None:
    end = works.build("evil-flood")
    assert end.result is not None
    assert len(end.result.stdout) <= works.builder.limits.output_bytes


def test_a_running_build_can_be_cancelled(works: Works) -> None:
    build = works.submit("slow")
    thread = threading.Thread(target=works.worker.run_one)
    thread.start()
    until(lambda: "Building images" in works.queue.read_log(build.build_id).text or not thread.is_alive())
    works.queue.cancel(build.build_id)
    thread.join(timeout=300)

    assert works.queue.find(build.build_id).state is BuildState.CANCELLED


def test_a_worker_that_is_stopped_gives_its_build_back(works: Works) -> None:
    build = works.submit("slow")
    stop = threading.Event()
    thread = threading.Thread(target=works.worker.run, args=(stop,))
    thread.start()
    until(lambda: "Building images" in works.queue.read_log(build.build_id).text or not thread.is_alive())
    stop.set()
    thread.join(timeout=300)

    assert not thread.is_alive()
    waiting = works.queue.find(build.build_id)
    assert (waiting.state, waiting.attempts) == (BuildState.QUEUED, 0)


def test_a_bug_in_a_builder_ends_one_build_and_not_the_worker(works: Works) -> None:
    class Buggy:
        name = "openwrt"

        def build(self, recipe: Recipe, place: Workplace) -> Built:
            raise ZeroDivisionError

    works.worker = replace(works.worker, builders=[Buggy()])
    assert works.failed("vim").kind is FailureKind.INTERNAL
    assert "ZeroDivisionError" in works.queue.read_log(1).text


class _Liar:
    """A malicious worker's way to the signer: it changes what is claimed, or the files behind it."""

    def __init__(self, signer: Signer, lie: str) -> None:
        self._signer = signer
        self._lie = lie
        self.refusals: list[str] = []

    def sign(self, claim: Claim) -> "object":
        place = Path(claim.directory)
        image = next(place.glob("*sysupgrade.bin"))
        if self._lie == "image":
            image.write_bytes(b"something else")
        lies: dict[str, Claim] = {
            "recipe": msgspec.structs.replace(claim, recipe_key=make_recipe("tmux").key),
            "builder": msgspec.structs.replace(claim, builder_digest="0" * 64),
            "manifest": msgspec.structs.replace(claim, manifest_text="base-files - 1\n"),
            "removed": msgspec.structs.replace(claim, manifest_text=claim.manifest_text + "opkg - 1\n"),
            "directory": msgspec.structs.replace(claim, directory="/etc"),
            "build": msgspec.structs.replace(claim, build_id=claim.build_id - 1),
        }
        try:
            return self._signer.sign(lies.get(self._lie, claim))
        except RefusedClaimError as error:
            self.refusals.append(error.reason)
            raise


@pytest.mark.parametrize("lie", ["image", "recipe", "builder", "manifest", "removed", "directory", "build"])
def test_a_malicious_worker_gets_no_signature(works: Works, lie: str) -> None:
    works.built("tmux")
    liar = _Liar(works.signer, lie)
    works.worker = replace(works.worker, signer=liar)  # type: ignore[arg-type]
    end = works.build("vim", "-opkg")

    assert end.failure is not None
    assert end.failure.kind is FailureKind.SIGNATURE_REFUSED
    assert len(liar.refusals) == 1
    assert len(list(works.store.served.iterdir())) == 1


@pytest.fixture
def signer_socket(works: Works) -> Iterator[Path]:
    path = works.directory / "signer" / "socket"
    server = SignerServer(path, works.signer)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield path
    server.stop()
    thread.join()


def test_the_signer_answers_over_a_socket(works: Works, signer_socket: Path) -> None:
    works.worker = replace(works.worker, signer=SocketSigner(signer_socket))
    place = works.store.served / works.built("vim").artefact
    verify_usign((place / "sha256sums").read_bytes(), (place / "sha256sums.sig").read_text(), (KEY.public,), name="s")

    with pytest.raises(RefusedClaimError):
        SocketSigner(signer_socket).sign(
            Claim(build_id=1, recipe_key="", builder_digest="", manifest_text="", directory="/etc")
        )
    for garbage in (b"", b"\xff" * 100, b'{"build_id": "x"}', b"[" * 100_000):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(signer_socket))
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            assert b"error" in connection.recv(1000)
    assert signer_socket.stat().st_mode & 0o007 == 0


def test_a_build_waits_for_a_signer_that_is_just_being_started(works: Works) -> None:
    path = works.directory / "signer" / "socket"
    started: list[tuple[SignerServer, threading.Thread]] = []

    def start(_seconds: float) -> None:
        if not started:
            server = SignerServer(path, works.signer)
            started.append((server, threading.Thread(target=server.run)))
            started[0][1].start()

    works.worker = replace(works.worker, signer=SocketSigner(path, wait=start))
    assert (works.store.served / works.built("vim").artefact / "sha256sums.sig").exists()
    [(server, thread)] = started
    server.stop()
    thread.join()


def test_without_its_signer_a_build_fails_unsigned(works: Works) -> None:
    works.worker = replace(works.worker, signer=SocketSigner(works.directory / "nobody", absence_s=0))
    assert works.failed("vim").kind is FailureKind.SETUP_FAILED
    with pytest.raises(UnreachableSignerError):
        SocketSigner(works.directory / "nobody", absence_s=0).sign(
            Claim(build_id=1, recipe_key="", builder_digest="", manifest_text="", directory="")
        )
