"""Kits, from the repository to a device without a network and back, with nothing but the restart simulated."""

import io
import json
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.fleet import PRODUCT, RealDevice, RealRepository
from tests.tools import need

from overhaul.agent.confirming import confirm
from overhaul.agent.kits import ForeignKitError, InstalledFromKit, install_from_kit, write_receipt
from overhaul.agent.outcomes import Checked, Ready, Updated
from overhaul.errors import NetworkError, TrustError
from overhaul.install.settings import load_settings
from overhaul.policy.rollout import Rollout
from overhaul.policy.selection import UpToDate
from overhaul.progress import Silence
from overhaul.publishing.kit_choice import KitRequest, NothingToCarryError
from overhaul.publishing.kit_receipts import collect_receipts
from overhaul.publishing.kits import KitExported, export_kit
from overhaul.publishing.policies import set_rollout
from overhaul.release.record import ReleaseId
from overhaul.server.receipts import parse_reports, store_reports
from overhaul.transfer.kit import KitUnusableError, open_kit

SIZE = 4 << 20
NOWHERE = "https://192.0.2.1"


def ext4(directory: Path, version: str) -> Path:
    """Make a root file system whose versions share most of their bytes."""
    tree, image = directory / f"tree-{version}", directory / f"{version}.ext4"
    tree.mkdir()
    for number in range(8):
        (tree / f"file-{number}").write_bytes(random.Random(number).randbytes(300_000))
    (tree / "changed").write_bytes(random.Random(version).randbytes(100_000))
    command = [
        need("mkfs.ext4"),
        "-q",
        "-b",
        "4096",
        "-O",
        "^has_journal",
        "-d",
        str(tree),
        str(image),
        f"{SIZE >> 10}k",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return image


class Scene:
    """A repository with releases, and devices that reach no network."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.repository = RealRepository(directory / "repository")
        self.images: dict[str, Path] = {}

    def publish(self, *versions: str) -> None:
        for version in versions:
            self.images[version] = ext4(self.directory, version)
            self.repository.publish(self.images[version], version)

    def device(self, version: str = "1.0", name: str = "device") -> RealDevice:
        return RealDevice.make(
            self.directory / name, url=NOWHERE, root=self.repository.root, image=self.images[version],
            version=version, slot_size=SIZE,
        )  # fmt: skip

    def export(self, place: str, *, folder: bool = False, **request: object) -> tuple[Path, KitExported]:
        path = self.directory / place
        if folder:
            path.mkdir(exist_ok=True)
        wanted = KitRequest(product=PRODUCT, channel="stable", **request)  # type: ignore[arg-type]
        return path, export_kit(self.repository.opened, path, wanted, progress=Silence())

    def runs(self, device: RealDevice, version: str) -> bool:
        return device.booted_bytes(SIZE) == self.images[version].read_bytes()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = Scene(tmp_path_factory.mktemp("origin"))
    scene.publish("1.0", "2.0")
    return scene


@pytest.fixture
def scene(origin: Scene, tmp_path: Path) -> Scene:
    copied = Scene.__new__(Scene)
    copied.directory = tmp_path
    copied.repository = origin.repository.copy(tmp_path / "repository")
    copied.images = dict(origin.images)
    return copied


def install(device: RealDevice, kit: Path, *, receipts: Path | None = None) -> InstalledFromKit:
    settings = load_settings(device.configuration)
    return install_from_kit(settings, open_kit(kit), receipts=receipts, progress=Silence())


@pytest.mark.parametrize("folder", [False, True], ids=["file", "directory"])
def test_a_device_updates_from_a_kit_and_its_receipts_come_home(scene: Scene, folder: bool) -> None:
    device = scene.device()
    kit, exported = scene.export("kit", folder=folder)
    installed = install(device, kit)
    assert isinstance(installed.answer, Updated)
    assert len(installed.receipts) == 1
    # A kit that comes by before the restart does not fill up with what it knows.
    waiting = install(device, kit)
    assert isinstance(waiting.answer, Ready)
    assert waiting.receipts == ()
    device.boot.simulate_boot()
    confirm(device.device)
    assert scene.runs(device, "2.0")
    again = install(device, kit)
    assert isinstance(again.answer, Checked)
    assert isinstance(again.answer.decision, UpToDate)
    # The same ending is told once, however often the kit comes by.
    assert install(device, kit).receipts == again.receipts

    collected = collect_receipts(scene.repository.opened, open_kit(kit))
    assert collected.refused == ()
    parsed = parse_reports([(one.name, one.report) for one in collected.receipts])
    assert sorted((report.outcome.value, report.from_version, report.to_version) for report in parsed.reports) == [
        ("confirmed", "1.0", "2.0"),
        ("installed", "1.0", "2.0"),
    ]
    assert {one.kit_id for one in collected.receipts} == {exported.manifest.kit_id}
    assert store_reports(scene.repository.directory, parsed.reports) == 2
    assert store_reports(scene.repository.directory, parsed.reports) == 0


def test_a_kit_for_one_release_carries_its_delta_instead_of_the_packs(scene: Scene) -> None:
    small, lean = scene.export("lean.kit", sources=("1.0",))
    _big, whole = scene.export("whole.kit")
    assert lean.size < whole.size / 2
    device = scene.device()
    installed = install(device, small)
    assert isinstance(installed.answer, Updated)
    assert installed.answer.way == "delta"
    device.boot.simulate_boot()
    assert scene.runs(device, "2.0")


def test_a_kit_with_packs_mends_a_damaged_slot_and_a_lean_one_says_what_it_lacks(scene: Scene) -> None:
    device = scene.device()
    with device.slot("A").open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(bytes(1 << 20))
    lean, _ = scene.export("lean.kit", sources=("1.0",))
    with pytest.raises(NetworkError, match=r"content/packs"):
        install(device, lean)
    full, _ = scene.export("full.kit", sources=("1.0",), with_packs=True)
    assert isinstance(install(device, full).answer, Updated)
    device.boot.simulate_boot()
    assert scene.runs(device, "2.0")


def test_a_kit_with_mends_mends_a_few_wrong_blocks_and_stays_smaller_than_one_with_packs(scene: Scene) -> None:
    device = scene.device()
    content = scene.images["1.0"].read_bytes()
    place = content.index(random.Random(3).randbytes(300_000)) + 100_000
    with device.slot("A").open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes(10))
    lean, _ = scene.export("lean.kit", sources=("1.0",))
    with pytest.raises(NetworkError, match=r"content/packs"):
        install(device, lean)
    mending, exported = scene.export("mending.kit", sources=("1.0",), with_mends=True)
    answer = install(device, mending).answer
    assert isinstance(answer, Updated)
    assert answer.repaired_chunks > 0
    device.boot.simulate_boot()
    assert scene.runs(device, "2.0")
    _full, with_packs = scene.export("full.kit", sources=("1.0",), with_packs=True)
    assert exported.size < with_packs.size / 2


def test_tar_lists_and_unpacks_a_kit_and_what_is_unpacked_is_a_kit(scene: Scene) -> None:
    kit, exported = scene.export("file.kit")
    folder = scene.directory / "unpacked"
    with tarfile.open(kit) as archive:
        assert len(archive.getnames()) == exported.files
        archive.extractall(folder, filter="data")
    assert isinstance(install(scene.device(), folder).answer, Updated)


def test_a_kit_that_tar_made_of_a_directory_is_a_kit(scene: Scene) -> None:
    folder, _ = scene.export("kit", folder=True)
    made = scene.directory / "made.tar"
    with tarfile.open(made, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(folder, ".")
    assert isinstance(install(scene.device(), made).answer, Updated)


def test_one_flipped_byte_anywhere_in_a_kit_installs_nothing_wrong(scene: Scene) -> None:
    kit, _ = scene.export("file.kit")
    device = scene.device()
    whole = kit.read_bytes()
    for step in range(16):
        place = step * len(whole) // 16 + 7
        kit.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        sister = device.copy(scene.directory / f"sister-{step}")
        try:
            installed = install(sister, kit)
        except (TrustError, NetworkError, KitUnusableError, ForeignKitError):
            continue
        finally:
            sister.boot.simulate_boot()
            assert scene.runs(sister, "1.0") or scene.runs(sister, "2.0")
            shutil.rmtree(sister.directory)
        assert isinstance(installed, InstalledFromKit)


def test_a_kit_cut_off_anywhere_is_refused_or_lacks_only_receipts(scene: Scene) -> None:
    kit, _ = scene.export("file.kit")
    install(scene.device(), kit)
    whole = kit.read_bytes()
    names = open_kit(kit).names("")
    for length in range(0, len(whole), len(whole) // 50):
        kit.write_bytes(whole[:length])
        try:
            left = open_kit(kit).names("")
        except KitUnusableError:
            continue
        # Cut between two members it reads as a shorter kit; then the device misses what it needs.
        assert set(left) <= set(names)


def test_a_torn_receipt_is_passed_over_and_the_next_one_takes_its_place(scene: Scene) -> None:
    kit, _ = scene.export("file.kit")
    before = kit.read_bytes()
    write_receipt(open_kit(kit), "a.json", b"first")
    after = kit.read_bytes()
    for torn in range(len(before) - 1024, len(after), 100):
        kit.write_bytes(after[:torn])
        write_receipt(open_kit(kit), "b.json", b"second")
        with tarfile.open(kit) as archive:
            reader = archive.extractfile("receipts/b.json")
            assert reader is not None
            assert reader.read() == b"second"


def test_a_directory_kit_is_brought_up_to_date_and_keeps_what_it_has(scene: Scene) -> None:
    kit, first = scene.export("stick", folder=True)
    (kit / "holiday.jpg").write_bytes(b"not ours")
    install(scene.device(), kit)
    scene.publish("3.0")
    _same, second = scene.export("stick", folder=True)
    assert second.kept_bytes > first.size / 2
    assert (kit / "holiday.jpg").read_bytes() == b"not ours"
    assert len(open_kit(kit).names("receipts/")) == 1
    device = scene.device(name="other")
    assert isinstance(install(device, kit).answer, Updated)
    device.boot.simulate_boot()
    assert scene.runs(device, "3.0")
    # What nothing names any more has left the stick.
    names = {name for name in open_kit(kit).names("metadata/") if name.endswith("snapshot.json")}
    assert len(names) == 1


def test_a_rollout_takes_along_what_the_other_devices_get(scene: Scene) -> None:
    scene.publish("3.0")
    newest = ReleaseId(product=PRODUCT, variant="lite", arch="amd64", version="3.0", build_id="b3.0")
    set_rollout(scene.repository.opened, newest, channel="stable", rollout=Rollout(percent=50.0))
    _path, exported = scene.export("file.kit")
    assert {release.version for release in exported.manifest.releases} == {"2.0", "3.0"}
    # Both kinds of devices find what the policy offers them.
    offered = set()
    # A device draws by chance which kind it is; that so many draw alike is out of the question.
    for number in range(64):
        device = scene.device(name=f"device-{number}")
        answer = install(device, scene.directory / "file.kit").answer
        assert isinstance(answer, Updated)
        offered.add(answer.to_release.version)
        if offered == {"2.0", "3.0"}:
            break
    assert offered == {"2.0", "3.0"}


def test_valid_days_make_a_kit_last_and_leave_the_public_timestamp_as_it_was(scene: Scene) -> None:
    _path, short = scene.export("short.kit")
    _path, long = scene.export("long.kit", valid_days=30)
    days = (long.manifest.usable_until - long.manifest.made_at) / 86400
    assert (short.manifest.usable_until - short.manifest.made_at) / 86400 <= 2
    assert 29 < days <= 30
    served = json.loads((scene.repository.public / "metadata/timestamp.json").read_bytes())
    published = scene.repository.opened.published()
    assert (published.report.roles["timestamp"][1].timestamp() - long.manifest.made_at) / 86400 < 3
    # A device that used the kit goes on with what is served: its version is higher.
    with tarfile.open(scene.directory / "long.kit") as archive:
        reader = archive.extractfile("metadata/timestamp.json")
        assert reader is not None
        carried = json.loads(reader.read())
    assert carried["signed"]["version"] < served["signed"]["version"]


def test_a_forged_receipt_and_one_of_another_repository_are_left_aside(scene: Scene) -> None:
    kit, _ = scene.export("stick", folder=True)
    install(scene.device(), kit)
    (place,) = (kit / "receipts").iterdir()
    document = json.loads(place.read_bytes())
    forged = {**document, "report": document["report"].replace('"installed"', '"confirmed"')}
    (kit / "receipts/forged.json").write_text(json.dumps(forged))
    (kit / "receipts/foreign.json").write_text(json.dumps({**document, "kit_id": "0123456789abcdef"}))
    (kit / "receipts/junk.json").write_bytes(b"\xff\0junk")
    collected = collect_receipts(scene.repository.opened, open_kit(kit))
    assert [one.name for one in collected.receipts] == [f"receipts/{place.name}"]
    assert len(collected.refused) == 3


def test_a_kit_that_cannot_be_written_still_installs(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    kit, _ = scene.export("file.kit")
    device = scene.device()

    def full(*_arguments: object) -> None:
        raise OSError(30, "Read-only file system", str(kit))

    monkeypatch.setattr("overhaul.agent.kits.write_receipt", full)
    installed = install(device, kit)
    assert isinstance(installed.answer, Updated)
    assert installed.receipts == ()
    assert "Read-only" in installed.receipt_fault
    sister = scene.device(name="sister")
    assert len(install(sister, kit, receipts=scene.directory / "elsewhere").receipts) == 1
    assert len(list((scene.directory / "elsewhere").iterdir())) == 1


def test_an_older_kit_rolls_no_device_back(scene: Scene) -> None:
    old, _ = scene.export("old.kit")
    scene.publish("3.0")
    new, _ = scene.export("new.kit")
    device = scene.device()
    install(device, new)
    device.boot.simulate_boot()
    confirm(device.device)
    with pytest.raises(TrustError):
        install(device, old)


def test_kits_for_others_and_for_nobody_are_refused_in_a_sentence(scene: Scene) -> None:
    with pytest.raises(NothingToCarryError, match=r"7\.7"):
        scene.export("none.kit", sources=("7.7",))
    assert not (scene.directory / "none.kit").exists()
    with pytest.raises(NothingToCarryError):
        scene.export("none.kit", sources=("2.0",))
    kit, _ = scene.export("file.kit")
    device = scene.device()
    device.configuration.write_text(device.configuration.read_text().replace('"stable"', '"beta"'))
    with pytest.raises(ForeignKitError, match="beta"):
        install(device, kit)


@pytest.mark.parametrize(
    "member", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_a_file_with_anything_but_plain_files_is_no_kit(tmp_path: Path, member: bytes) -> None:
    info = tarfile.TarInfo("kit.json")
    info.type, info.linkname = member, "/etc/shadow"
    (tmp_path / "bad.kit").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(KitUnusableError):
        open_kit(tmp_path / "bad.kit")


def test_a_kit_whose_headers_claim_much_takes_little(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x" * 5000))
    (tmp_path / "long.kit").write_bytes(buffer.getvalue())
    with pytest.raises(KitUnusableError, match="5001 bytes"):
        open_kit(tmp_path / "long.kit")
    info = tarfile.TarInfo("kit.json")
    info.size = 1 << 62
    (tmp_path / "huge.kit").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(KitUnusableError, match="ends inside"):
        open_kit(tmp_path / "huge.kit")


def test_making_a_kit_anew_keeps_receipts_and_overwrites_nothing_else(scene: Scene) -> None:
    kit, _ = scene.export("file.kit")
    install(scene.device(), kit)
    receipts = open_kit(kit).names("receipts/")
    scene.export("file.kit")
    assert open_kit(kit).names("receipts/") == receipts
    assert len(collect_receipts(scene.repository.opened, open_kit(kit)).receipts) == 1
    (scene.directory / "letter.txt").write_text("dear operator")
    with pytest.raises(KitUnusableError):
        scene.export("letter.txt")
    assert (scene.directory / "letter.txt").read_text() == "dear operator"


@pytest.mark.parametrize("name", ["content", "content/packs", "receipts", "metadata"])
def test_a_stick_whose_folders_lead_elsewhere_is_neither_written_nor_swept(scene: Scene, name: str) -> None:
    kit, _ = scene.export("stick", folder=True)
    elsewhere = scene.directory / "elsewhere"
    shutil.copytree(kit / name, elsewhere)
    (elsewhere / "precious").write_text("ours")
    shutil.rmtree(kit / name)
    (kit / name).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    with pytest.raises(KitUnusableError, match="symbolic link"):
        scene.export("stick", folder=True)
    installed = install(scene.device(), kit)
    if name == "receipts":
        assert installed.receipts == ()
        assert installed.receipt_fault
    assert sorted(elsewhere.rglob("*")) == before
