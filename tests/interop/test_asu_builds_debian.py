"""A Debian image on demand, for real: apt, mmdebstrap, mke2fs, the sandbox, the signer and a publish.

It asks the mirror that this machine's apt uses, for the smallest image there is and one small package.
"""

import subprocess
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.debian import cache_directory, mirror_sources, suite
from tests.tools import need

from overhaul.builds.builder import Workplace
from overhaul.builds.debian import DebianBuilder
from overhaul.builds.debian_archives import DebianArchives, DebianExpectation
from overhaul.builds.memory import MemoryQueue
from overhaul.builds.recipe import Recipe
from overhaul.builds.records import BuildRecord, BuildState
from overhaul.builds.releases import release_of
from overhaul.builds.results import BuildFailedError, FailureKind, Phase, PublishedRelease
from overhaul.builds.sandbox import Limits
from overhaul.builds.signing import Claim, KeySigner, RefusedClaimError, Signatures, Statement
from overhaul.builds.store import ArtefactStore
from overhaul.builds.worker import Worker
from overhaul.progress import Silence
from overhaul.publishing.create import create_repository
from overhaul.publishing.opening import open_repository
from overhaul.publishing.publish import PublishRequest, publish
from overhaul.release.record import ReleaseId
from overhaul.trust.usign import generate_usign_key, verify_usign

KEY = generate_usign_key()
LIMITS = Limits(time_s=500.0)


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


def test_an_image_with_its_own_packages_is_built_signed_and_published(archives: DebianArchives, tmp_path: Path) -> None:
    create_repository(tmp_path / "repository", products=("weather",), demo_keys=True)
    repository = open_repository(tmp_path / "repository")
    published: list[ReleaseId] = []

    def put(build: BuildRecord, directory: Path) -> PublishedRelease | None:
        release = release_of(build, channel="stable")
        assert release is not None
        name = ReleaseId(
            product=release.product, variant=release.variant, arch=release.arch, version=release.version,
            build_id=release.build_id,
        )  # fmt: skip
        [image] = directory.glob("*.img")
        publish(repository, PublishRequest(source=image, release=name, channel="stable"), workers=1, progress=Silence())
        published.append(name)
        return release

    queue, store = MemoryQueue(), ArtefactStore(tmp_path / "artefacts")
    own = replace(archives, directory=cache_directory() / "signer")
    signer = KeySigner(
        key=KEY, queue=queue, expectations={"debian": DebianExpectation(own)}, incoming=store.root / "incoming",
        publish=put,
    )  # fmt: skip
    lies: list[str] = []

    class Honest:
        """Claims what was built; first it tries what a malicious worker would."""

        def sign(self, claim: Claim) -> Signatures:
            for lie in (
                msgspec.structs.replace(claim, manifest_text=claim.manifest_text.replace("apt ", "apt 0")),
                msgspec.structs.replace(claim, manifest_text=claim.manifest_text + "backdoor 1\n"),
                msgspec.structs.replace(claim, builder_digest="0" * 64),
            ):
                with pytest.raises(RefusedClaimError) as refusal:
                    signer.sign(lie)
                lies.append(refusal.value.reason)
            return signer.sign(claim)

    worker = Worker(
        name="w", queue=queue, store=store, builders=[DebianBuilder(archives=archives, limits=LIMITS)],
        signer=Honest(), directory=tmp_path / "work",
    )  # fmt: skip
    wanted = _recipe("iputils-ping", defaults="#!/bin/sh\necho first\n")
    build = queue.submit(wanted, names=["abc"], client="c").build
    assert worker.run_one()

    end = queue.find(build.build_id)
    assert end.state is BuildState.FINISHED, end.failure
    assert end.result is not None
    assert len(lies) == 3
    assert "backdoor" in lies[1]
    assert end.result.manifest == archives.resolve(wanted, Silent(), download=False).manifest
    assert "iputils-ping" in end.result.manifest
    place = store.served / "abc"
    statement = msgspec.json.decode((place / "build.json").read_bytes(), type=Statement)
    verify_usign((place / "build.json").read_bytes(), (place / "build.json.sig").read_text(), (KEY.public,), name="b")
    assert statement.recipe == wanted

    [image] = [place / one.name for one in end.result.images]
    check = subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=False)
    assert check.returncode == 0, check.stdout
    looked = subprocess.run(
        ["debugfs", "-f", "-", image],
        input=b"stat /usr/bin/ping\nstat /var/mail\ncat /etc/apt/sources.list\ncat /usr/lib/overhaul/first-boot\n"
        b"stat /dev/null\ncat /var/lib/dpkg/status\n",
        capture_output=True, check=True,
    ).stdout.decode(errors="replace")  # fmt: skip
    assert "User:     0   Group:     0" in looked
    assert "Group:     8" in looked
    assert wanted.version in looked
    assert "echo first" in looked
    for package, version in end.result.manifest.items():
        assert f"Package: {package}\n" in looked
        assert f"Version: {version}\n" in looked

    [release] = published
    assert end.result.release is not None
    assert (end.result.release.variant, end.result.release.product) == (release.variant, "weather")
    assert list((tmp_path / "repository/store/public").rglob("*.json"))
    assert not queue.submit(wanted, names=["again"], client="d").is_new


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
