"""A release published for this dialect, with bundles that the real RAUC made, checks and unpacks."""

import json
import subprocess
from pathlib import Path

import msgspec
import pytest
from tests.asgi import Site, running
from tests.atomupd_devices import COMPATIBLE, image_bytes, make_signer, rauc_device
from tests.tools import need

from overhaul.content.chunker import chunk_file
from overhaul.content.index import read_index
from overhaul.dialects.atomupd.catalogue import Entry
from overhaul.dialects.atomupd.own_pool import image_of_release
from overhaul.dialects.atomupd.own_queries import PolicySource
from overhaul.dialects.atomupd.publish import AtomupdDialect, UnpublishableReleaseError
from overhaul.dialects.atomupd.serve import QueryServer
from overhaul.dialects.atomupd.settings import AtomupdSettings
from overhaul.dialects.atomupd.sizes import SizeEstimator
from overhaul.dialects.seam import DialectSource, Opened
from overhaul.policy.document import Policy, PolicyEntry
from overhaul.policy.hardware import Equals, HardwareRules
from overhaul.policy.rollout import Rollout
from overhaul.progress import Silence
from overhaul.release.record import ReleaseId

_META = "meta/holo/weather/amd64/lite"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and certificate that sign bundles; made once."""
    directory = tmp_path_factory.mktemp("keys")
    subprocess.run(
        [
            *(need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=test"),
            *("-keyout", directory / "key.pem", "-out", directory / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return directory


class _Publisher:
    def __init__(self, directory: Path, keys: Path, **settings: object) -> None:
        need("rauc")
        need("mksquashfs")
        self.directory = directory / "public" / "atomupd" / "weather"
        self.settings = msgspec.convert(
            {"release": "holo", "compatible": "weather", "key": "key.pem", "certificate": "cert.pem", **settings},
            AtomupdSettings,
        )
        self.dialect = AtomupdDialect(
            self.settings, product="weather", directory=self.directory, base=keys, clock=lambda: 0.0
        )
        self._work = directory / "work"
        self._number = 0

    def publish(self, version: str, build_id: str, *, image: Path | None = None) -> ReleaseId:
        release = _release(version, build_id)
        self._number += 1
        work = self._work / str(self._number)
        work.mkdir(parents=True)
        if image is None:
            image = work.with_suffix(".img")
            image.write_bytes(bytes(range(256)) * 2000 + version.encode())
        source = DialectSource(release=release, image=image, tree=None, entries=(), timestamp=0)
        writer = self.dialect.writer(source, work=work, workers=1, progress=Silence())
        if writer is not None:
            writer.write()
        return release

    def point(
        self, *releases: ReleaseId, checkpoints: tuple[ReleaseId, ...] = (), recalled: tuple[ReleaseId, ...] = ()
    ) -> bool:
        opened = Opened(channel="stable", variant="lite", arch="amd64", releases=releases, checkpoints=checkpoints)
        return self.dialect.point([opened], recalled=dict.fromkeys(recalled, "it burns"))

    def offered(self, version: str, build_id: str) -> list[str]:
        document = json.loads((self.directory / f"{_META}/stable/{version}/{build_id}.json").read_bytes())
        return [one["image"]["version"] for one in document["minor"]["candidates"]] if document else []

    def first_size(self, version: str, build_id: str) -> int:
        document = json.loads((self.directory / f"{_META}/stable/{version}/{build_id}.json").read_bytes())
        return int(document["minor"]["candidates"][0]["image"]["estimated_size"])

    def bundle(self, release: ReleaseId) -> Path:
        place = f"images/weather/lite/amd64/{release.version}/{release.build_id}/image.raucb"
        return self.directory / place


@pytest.fixture
def publisher(tmp_path: Path, keys: Path) -> _Publisher:
    return _Publisher(tmp_path, keys)


def _release(version: str, build_id: str) -> ReleaseId:
    return ReleaseId(product="weather", variant="lite", arch="amd64", version=version, build_id=build_id)


def test_a_casync_bundle_holds_the_signed_index_and_finds_its_store(
    publisher: _Publisher, keys: Path, tmp_path: Path
) -> None:
    release = publisher.publish("3.7.1", "20240101.1")
    bundle = publisher.bundle(release)
    target = tmp_path / "extracted"
    subprocess.run(
        [need("rauc"), "--keyring", keys / "cert.pem", "extract", bundle, target], check=True, capture_output=True
    )

    assert read_index((target / "rootfs.img.caibx").read_bytes()).size == 256 * 2000 + 5
    store = bundle.with_suffix(".castr")
    expected = tmp_path / "public" / "castr" / "weather" / "default.castr"
    assert (store.parent / store.readlink()).resolve() == expected.resolve()


def test_rauc_installs_a_published_casync_bundle_from_the_store_beside_it(tmp_path: Path) -> None:
    signer = make_signer(tmp_path)
    old, new = image_bytes(1), image_bytes(2)
    publisher = _Publisher(
        tmp_path, tmp_path, compatible=COMPATIBLE, key=signer.key.name, certificate=signer.certificate.name
    )
    store = tmp_path / "public" / "castr" / "weather" / "default.castr"
    store.parent.mkdir(parents=True)
    image = tmp_path / "new.img"
    image.write_bytes(new)
    subprocess.run(
        [need("casync"), "make", f"--store={store}", tmp_path / "new.caibx", image], check=True, capture_output=True
    )
    bundle = publisher.bundle(publisher.publish("3.7.1", "20240101.1", image=image))
    with rauc_device(tmp_path / "device", signer, image=old) as device:
        done = subprocess.run(
            [need("rauc"), "install", bundle], env=device.environment, capture_output=True, text=True, check=False
        )

        assert done.returncode == 0, done.stderr
        assert device.slot_b.read_bytes()[: len(new)] == new
        assert device.told_the_boot_loader() == ["set-state B bad", "set-primary B"]


def test_a_plain_bundle_holds_the_image(tmp_path: Path, keys: Path) -> None:
    publisher = _Publisher(tmp_path, keys, bundle="plain")
    release = publisher.publish("3.7.1", "20240101.1")
    said = subprocess.run(
        [need("rauc"), "--keyring", keys / "cert.pem", "info", publisher.bundle(release)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert "rootfs.img" in said
    assert not publisher.bundle(release).with_suffix(".castr").is_symlink()


def test_publishing_again_makes_no_second_bundle(publisher: _Publisher) -> None:
    release = publisher.publish("3.7.1", "20240101.1")
    before = publisher.bundle(release).stat().st_mtime_ns
    publisher.publish("3.7.1", "20240101.1")

    assert before == publisher.bundle(release).stat().st_mtime_ns


def test_what_is_opened_is_pointed_at_once_and_through_checkpoints(publisher: _Publisher) -> None:
    one, two, three = (publisher.publish(f"3.7.{number}", f"2024010{number}.1") for number in (1, 2, 3))

    assert publisher.point(one)
    assert publisher.offered("3.7.1", "20240101.1") == []
    assert publisher.point(one, two, three, checkpoints=(two,))
    assert not publisher.point(one, two, three, checkpoints=(two,))
    assert publisher.offered("3.7.1", "20240101.1") == ["3.7.2", "3.7.3"]
    assert (publisher.directory / f"{_META}/stable.cp1.json").exists()
    assert (publisher.directory / f"{_META}/stable.json").exists()
    # The number of a checkpoint outlives its release.
    publisher.point(one, three)
    assert publisher.offered("3.7.2", "20240102.1") == ["3.7.3"]


def test_answers_say_how_much_is_downloaded(publisher: _Publisher, tmp_path: Path, keys: Path) -> None:
    images = [tmp_path / name for name in ("old.img", "new.img")]
    for number, path in enumerate(images):
        path.write_bytes(image_bytes(number))
    one, two = (
        publisher.publish(f"3.7.{number}", f"2024010{number}.1", image=path) for number, path in enumerate(images, 1)
    )
    publisher.point(one, two)
    old, new = ({chunk.id: chunk.size for chunk in chunk_file(path)} for path in images)
    expected = int(sum(size for identity, size in new.items() if identity not in old) / 1.33)

    assert 0 < expected < images[1].stat().st_size / 2
    assert publisher.first_size("3.7.1", "20240101.1") == expected

    plain = _Publisher(tmp_path / "plain", keys, bundle="plain")
    one, two = (plain.publish(f"3.7.{number}", f"2024010{number}.1", image=images[0]) for number in (1, 2))
    plain.point(one, two)
    assert plain.first_size("3.7.1", "20240101.1") == plain.bundle(two).stat().st_size


def test_a_recalled_release_leads_back_and_one_not_open_is_known(publisher: _Publisher) -> None:
    one = publisher.publish("3.7.1", "20240101.1")
    two = publisher.publish("3.7.2", "20240102.1")

    publisher.point(one)
    assert publisher.offered("3.7.2", "20240102.1") == []
    publisher.point(one, recalled=(two,))
    assert publisher.offered("3.7.2", "20240102.1") == ["3.7.1"]


@pytest.mark.parametrize(("version", "build_id"), [("bookworm", "20240101"), ("3.7.1", "r42")])
def test_names_that_mean_nothing_here_are_refused_before_any_work(
    publisher: _Publisher, version: str, build_id: str
) -> None:
    with pytest.raises(UnpublishableReleaseError):
        publisher.dialect.check(_release(version, build_id))


def test_queries_are_answered_by_policy_for_each_device(publisher: _Publisher) -> None:
    for number in (1, 2, 3):
        publisher.publish(f"3.7.{number}", f"2024010{number}.1")
    entries = (
        PolicyEntry(variant="lite", arch="amd64", version="3.7.1", build_id="20240101.1"),
        PolicyEntry(
            variant="lite", arch="amd64", version="3.7.2", build_id="20240102.1", rollout=Rollout(percent=50.0)
        ),
        PolicyEntry(
            variant="lite",
            arch="amd64",
            version="3.7.3",
            build_id="20240103.1",
            hardware=HardwareRules(allow=(Equals(fact="board", value="rpi4"),)),
        ),
    )
    policies = [Policy(product="weather", channel="stable", revision=1, signed_at=0, entries=entries)]
    source = PolicySource(
        publisher.settings, product="weather", directory=publisher.directory, policies=lambda: policies
    )
    with running(QueryServer(source)) as site:
        places = [place for place in range(100) if _offered(site, rollout=str(place)) == ["3.7.2"]]

        assert _offered(site) == []
        assert 30 < len(places) < 70
        assert _offered(site, **{"hardware.board": "rpi4"}) == ["3.7.3"]


def _offered(site: Site, **more: str) -> list[str]:
    fields = "product=weather&release=holo&variant=lite&arch=amd64&version=3.7.1&buildid=20240101.1&branch=stable"
    extra = "".join(f"&{name}={value}" for name, value in more.items())
    body = site.ask(f"/?{fields}{extra}").body
    return [one["image"]["version"] for one in json.loads(body)["minor"]["candidates"]] if body else []


def test_sizes_are_estimated_from_the_indexes_that_rauc_extracts(tmp_path: Path) -> None:
    signer = make_signer(tmp_path)
    publisher = _Publisher(
        tmp_path, tmp_path, compatible=COMPATIBLE, key=signer.key.name, certificate=signer.certificate.name
    )
    entries, chunks = [], []
    for number in (1, 2):
        image = tmp_path / f"{number}.img"
        image.write_bytes(image_bytes(number))
        release = publisher.publish(f"3.7.{number}", "20240101.1", image=image)
        path = publisher.bundle(release).relative_to(publisher.directory)
        described = image_of_release(release, publisher.settings, {}, branch="stable")
        entries.append(Entry(described, str(path)))
        chunks.append({chunk.id: chunk.size for chunk in chunk_file(image)})
    configuration = tmp_path / "system.conf"
    configuration.write_text(
        f"[system]\ncompatible={COMPATIBLE}\nbootloader=noop\n[keyring]\npath={signer.certificate}\n"
    )
    estimate = SizeEstimator(publisher.directory, rauc_config=configuration)
    missing = sum(size for identity, size in chunks[1].items() if identity not in chunks[0])

    assert estimate(entries[0], entries[1]) == int(missing / 1.33) > 0
    assert estimate(entries[0], entries[0]) == 0
    (publisher.directory / entries[1].update_path).write_bytes(b"no bundle")
    assert estimate(entries[0], entries[1]) == 0
