"""A Debian image on demand, for real: apt, mmdebstrap, mke2fs, the sandbox, the signer and a publish.

It asks the mirror that this machine's apt uses, for the smallest image there is and one small package. One group, so
that the cache of archives is one process's.
"""

import hashlib
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.asgi import running
from tests.asu_world import asu_world
from tests.debian import cache_directory, mirror_sources, suite
from tests.fleet import RealDevice
from tests.loopback import serving
from tests.tools import need

from overhaul.agent.confirming import confirm
from overhaul.agent.outcomes import Updated
from overhaul.agent.updating import update
from overhaul.builds.builder import Workplace
from overhaul.builds.debian import DebianBuilder
from overhaul.builds.debian_archives import DebianArchives, DebianExpectation
from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildRecord, BuildState
from overhaul.builds.releases import variant_of
from overhaul.builds.results import BuildFailedError, FailureKind, Phase
from overhaul.builds.sandbox import Limits
from overhaul.builds.signing import Claim, KeySigner, RefusedClaimError, Signatures, Statement
from overhaul.builds.store import ArtefactStore
from overhaul.builds.worker import Worker
from overhaul.dialects.asu.settings import DebianProduct
from overhaul.progress import Silence
from overhaul.publishing.create import create_repository
from overhaul.publishing.on_demand import image_publisher, statement_recorder
from overhaul.publishing.opening import open_repository
from overhaul.trust.usign import generate_usign_key, verify_usign

#: One process uses the cache of archives at a time; two images are built, of archives that may have to be fetched.
pytestmark = [pytest.mark.xdist_group("debian-archives"), pytest.mark.timeout(1800)]
KEY = generate_usign_key()
LIMITS = Limits(time_s=1500.0)
#: Sparse.
_SLOT_BYTES = 320 << 20


class Silent:
    """Follows a build and says nothing."""

    def phase(self, phase: Phase) -> None:
        pass

    def log(self, text: str) -> None:
        pass

    def check(self) -> None:
        pass


def _recipe(*packages: str, **changes: object) -> Recipe:
    base = Recipe(
        builder="debian", distribution="debian", version=suite(), target="amd64", profile="weather", packages=packages
    )
    return msgspec.convert({**msgspec.to_builtins(base), **changes}, Recipe, strict=False)


@pytest.fixture(scope="module")
def archives() -> DebianArchives:
    for program in ("bwrap", "mmdebstrap", "mke2fs", "apt-get"):
        need(program)
    return DebianArchives(directory=cache_directory() / "worker", sources=mirror_sources(), limits=LIMITS)


class Honest:
    """Claims what was built; the first time it tries before what a malicious worker would."""

    def __init__(self, signer: KeySigner) -> None:
        self._signer = signer
        self.refusals: list[str] = []

    def sign(self, claim: Claim) -> Signatures:
        if not self.refusals:
            self._lie(claim)
        return self._signer.sign(claim)

    def _lie(self, claim: Claim) -> None:
        for lie in (
            msgspec.structs.replace(claim, manifest_text=claim.manifest_text.replace("apt ", "apt 0")),
            msgspec.structs.replace(claim, manifest_text=claim.manifest_text + "backdoor 1\n"),
            msgspec.structs.replace(claim, builder_digest="0" * 64),
        ):
            with pytest.raises(RefusedClaimError) as refusal:
                self._signer.sign(lie)
            self.refusals.append(refusal.value.reason)


def test_a_device_gets_an_image_of_its_own_packages_and_later_what_changed_in_it(
    archives: DebianArchives, tmp_path: Path
) -> None:
    """From the request over apt, sandbox, signer and publish to the slots; only the boot loader is a stand-in."""
    create_repository(tmp_path / "repository", products=("weather",), with_builds=True, demo_keys=True)
    repository = open_repository(tmp_path / "repository")
    products = {"weather": DebianProduct(suites=(suite(),), architectures=("amd64",))}
    (tmp_path / "builds.pub").write_text(KEY.public.text())
    with ExitStack() as stack:
        world = stack.enter_context(asu_world(tmp_path / "world", debian=products, allow_defaults=True))
        site = stack.enter_context(running(world.app))
        public = stack.enter_context(serving(tmp_path / "repository/store/public"))
        queue, store = world.queue, world.store
        own = replace(archives, directory=cache_directory() / "signer")
        honest = Honest(
            KeySigner(
                key=KEY,
                queue=queue,
                expectations={"debian": DebianExpectation(own)},
                incoming=store.root / "incoming",
                publish=image_publisher(repository, channel="stable"),
                record_statement=statement_recorder(repository),
            )
        )
        worker = Worker(
            name="w", queue=queue, store=store, builders=[DebianBuilder(archives=archives, limits=LIMITS)],
            signer=honest, directory=tmp_path / "work",
        )  # fmt: skip
        device = RealDevice.make(
            tmp_path / "device", url=public.url, root=tmp_path / "repository/root.json", image=Path("/dev/null"),
            version="0", slot_size=0,
        )  # fmt: skip

        for name in ("A", "B"):
            with device.slot(name).open("wb") as stream:
                stream.truncate(_SLOT_BYTES)

        # The device asks for the package that it has; the whole image goes into its idle slot.
        stop = threading.Event()
        building = threading.Thread(target=worker.run, args=(stop,))
        building.start()
        try:
            said = _sysupgrade(tmp_path, site.url, device)
        finally:
            stop.set()
            building.join()
        assert "Slot B holds the image" in said
        [first] = queue.recent(limit=5)
        assert first.result is not None
        assert first.result.release is not None
        image = _check_image(first, store, archives)
        assert _begins_with(device.slot("B"), image)
        assert "backdoor" in honest.refusals[1]
        assert device.boot.simulate_boot() == "B"
        assert confirm(device.device).slot == "B"

        # It is of that variant from now on, and a later build of the same wish comes as a difference.
        text = device.configuration.read_text()
        variant = variant_of(first.recipe)
        assert variant == first.result.release.variant
        device.configuration.write_text(text.replace('variant = "lite"', f'variant = "{variant}"'))
        world.now[0] += 86_400
        wish = {"distro": "debian", "version": suite(), "target": "debian/amd64", "profile": "weather",
                "packages": ["iputils-ping"], "filesystem": "ext4",
                "rootfs_size_mb": (image.stat().st_size >> 20) + 8}  # fmt: skip
        assert world.post("/api/v1/build", wish).status == 202
        assert worker.run_one()
        second, _first = queue.recent(limit=5)
        assert second.state is BuildState.FINISHED, second.failure
        before = public.body_bytes
        updated = update(device.device, progress=Silence())
        assert isinstance(updated, Updated)
        [newer] = (store.served / second.name).glob("*.img")
        assert _begins_with(device.slot("A"), newer)
        fetched = public.body_bytes - before
        assert fetched < newer.stat().st_size / 20, fetched

    # What the signer said is signed under the role of builds too, for devices that trust the repository.
    report = repository.published().report
    assert not report.findings
    recorded = report.targets[f"builds/{first.name}/build.json"]
    assert recorded.sha256 == hashlib.sha256((store.served / first.name / "build.json").read_bytes()).hexdigest()


def _begins_with(slot: Path, image: Path) -> bool:
    """Tell whether a slot holds an image."""
    done = subprocess.run(["cmp", f"--bytes={image.stat().st_size}", slot, image], capture_output=True, check=False)
    return done.returncode == 0


def _sysupgrade(directory: Path, server: str, device: RealDevice) -> str:
    """Run `overhaul sysupgrade install` where the tools of apt tell of one package that somebody chose."""
    tools = directory / "tools"
    tools.mkdir()
    for name, answer in (("apt-mark", "iputils-ping"), ("dpkg-query", "ii \tiputils-ping\t1")):
        (tools / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tools / name).chmod(0o755)
    (directory / "sysupgrade.toml").write_text(
        f'server = "{server}"\nallow_http = true\npoll_every_s = 0.2\ndevice_config = "{device.configuration}"\n'
        f'usign_keys = ["{directory}/builds.pub"]\ndirectory = "{directory}/fetched"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "overhaul", "sysupgrade", "install", "--yes", "--config", directory / "sysupgrade.toml"],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _check_image(build: BuildRecord, store: ArtefactStore, archives: DebianArchives) -> Path:
    """Return the image of a build, after looking into it with the tools of its file system."""
    result, place = build.result, store.served / build.name
    assert result is not None
    assert result.manifest == archives.resolve(build.recipe, Silent(), download=False).manifest
    assert "iputils-ping" in result.manifest
    statement = msgspec.json.decode((place / "build.json").read_bytes(), type=Statement)
    verify_usign((place / "build.json").read_bytes(), (place / "build.json.sig").read_text(), (KEY.public,), name="b")
    assert statement.recipe == build.recipe
    [image] = [place / one.name for one in result.images]
    check = subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=False)
    assert check.returncode == 0, check.stdout
    looked = subprocess.run(
        ["debugfs", "-f", "-", image],
        input=b"stat /usr/bin/ping\nstat /var/mail\ncat /etc/apt/sources.list\nstat /dev/null\n"
        b"cat /var/lib/dpkg/status\n",
        capture_output=True, check=True,
    ).stdout.decode(errors="replace")  # fmt: skip
    assert "User:     0   Group:     0" in looked
    assert "Group:     8" in looked
    assert build.recipe.version in looked
    for package, version in result.manifest.items():
        assert f"Package: {package}\n" in looked
        assert f"Version: {version}\n" in looked
    return image


def test_impossible_selections_are_told_without_building(archives: DebianArchives) -> None:
    with pytest.raises(BuildFailedError) as missing:
        archives.resolve(_recipe("no-such-package"), Silent(), download=False)
    with pytest.raises(BuildFailedError) as conflicting:
        archives.resolve(_recipe("exim4-daemon-light", "postfix"), Silent(), download=False)
    with pytest.raises(BuildFailedError) as removing:
        archives.resolve(_recipe("-apt"), Silent(), download=False)

    assert missing.value.failure.missing == ("no-such-package",)
    assert missing.value.failure.kind is FailureKind.IMPOSSIBLE_PACKAGES
    assert {"exim4-daemon-light", "postfix"} & set(conflicting.value.failure.conflicts)
    assert removing.value.failure.kind is FailureKind.IMPOSSIBLE_PACKAGES


def test_a_resolution_names_the_same_bytes_every_time(archives: DebianArchives) -> None:
    one = archives.resolve(_recipe("iputils-ping", "nano"), Silent(), download=False)
    other = archives.resolve(_recipe("nano", "iputils-ping"), Silent(), download=False)

    assert one.digest == other.digest
    assert one.digest != archives.resolve(_recipe("nano"), Silent(), download=False).digest
    assert all(len(archive.sha256) == 64 for archive in one.archives)


@pytest.mark.parametrize(
    "changes",
    [{"filesystem": "ubifs"}, {"repositories": [["a", "https://a.test/"]]}, {"revision": "r1"}],
)
def test_what_debian_images_cannot_have_is_refused(
    archives: DebianArchives, tmp_path: Path, changes: dict[str, object]
) -> None:
    place = Workplace(directory=tmp_path, artefact="a", watcher=Silent())
    with pytest.raises(BuildFailedError):
        DebianBuilder(archives=archives).build(_recipe(**changes), place)
