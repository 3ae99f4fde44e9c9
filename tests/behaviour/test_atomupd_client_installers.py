"""What every installer of the atomupd client promises: the real RAUC in both ways, and Overhaul's own slots."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.atomupd_devices import (
    Signer,
    image_bytes,
    make_casync_bundle,
    make_signer,
    rauc_device,
    write_slots_device,
)
from tests.loopback import LoopbackServer, serving

from overhaul.dialects.atomupd.device.installing import Bundle, Installer
from overhaul.dialects.atomupd.device.rauc import RaucCommand
from overhaul.dialects.atomupd.device.raucbus import RaucBus
from overhaul.dialects.atomupd.device.slots import SlotInstaller
from overhaul.errors import OverhaulError
from overhaul.install.opening import open_boot
from overhaul.install.settings import load_settings
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings

OLD, NEW = image_bytes(1), image_bytes(2)


@dataclass(frozen=True)
class Case:
    """An installer on a device of its own."""

    installer: Installer
    idle: Path
    #: The slot that the boot loader chooses next.
    next_slot: Callable[[], str]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Signer]:
    directory = tmp_path_factory.mktemp("published")
    signer = make_signer(directory)
    make_casync_bundle(directory, "new", NEW, signer)
    make_casync_bundle(directory, "foreign", NEW, make_signer(directory, "stranger"))
    return directory, signer


@pytest.fixture
def server(published: tuple[Path, Signer]) -> Iterator[LoopbackServer]:
    with serving(published[0]) as running:
        yield running


@pytest.fixture(params=["rauc", "rauc-command", "slots"])
def case(
    request: pytest.FixtureRequest,
    published: tuple[Path, Signer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Case]:
    signer = published[1]
    with ExitStack() as running:
        if request.param == "slots":
            yield slots_case(tmp_path, signer)
            return
        device = running.enter_context(rauc_device(tmp_path / "device", signer, image=OLD))
        for name in ("PATH", "DBUS_SYSTEM_BUS_ADDRESS", "DBUS_STARTER_BUS_TYPE"):
            monkeypatch.setenv(name, device.environment[name])

        def next_slot() -> str:
            told = device.told_the_boot_loader()
            return told[-1].split()[1] if told and told[-1].startswith("set-primary") else "A"

        installer: Installer = RaucBus() if request.param == "rauc" else RaucCommand()
        yield Case(installer, device.slot_b, next_slot)


def slots_case(directory: Path, signer: Signer) -> Case:
    settings = load_settings(write_slots_device(directory / "device", image=OLD))
    boot = open_boot(settings)
    installer = SlotInstaller(
        settings,
        boot=boot,
        keyring=signer.certificate,
        compatible="",
        open_fetcher=lambda _url: open_fetcher(FetchSettings(allow_http=True)),
        clock=lambda: 0.0,
    )
    return Case(installer, directory / "device/slot-b", boot.primary)


def bundle(url: str) -> Bundle:
    return Bundle(url=url, product="steamos", variant="steamdeck", arch="amd64", version="3.7.0", build_id="20240201.1")


def test_the_next_start_uses_the_new_image(case: Case, server: LoopbackServer) -> None:
    case.installer.install(bundle(f"{server.url}/new.raucb"), tell=lambda _line: None)
    assert case.idle.read_bytes()[: len(NEW)] == NEW
    assert case.next_slot() == "B"


def test_a_bundle_in_a_file_is_installed_with_its_store_beside_it_on_the_server(
    case: Case, server: LoopbackServer, published: tuple[Path, Signer]
) -> None:
    local = bundle(str(published[0] / "new.raucb"))
    if isinstance(case.installer, SlotInstaller):
        # RAUC finds a store in a directory by itself.
        local = Bundle(url=local.url, store_url=f"{server.url}/new.castr")
    case.installer.install(local, tell=lambda _line: None)
    assert case.idle.read_bytes()[: len(NEW)] == NEW


def test_progress_begins_at_0_and_ends_at_100(case: Case, server: LoopbackServer) -> None:
    lines: list[str] = []
    case.installer.install(bundle(f"{server.url}/new.raucb"), tell=lines.append)
    percents = [float(line.split("%")[0]) for line in lines]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)


def test_what_a_stranger_signed_changes_nothing(case: Case, server: LoopbackServer) -> None:
    before = case.idle.read_bytes()
    with pytest.raises(OverhaulError):
        case.installer.install(bundle(f"{server.url}/foreign.raucb"), tell=lambda _line: None)
    assert case.idle.read_bytes() == before
    assert case.next_slot() == "A"


def test_a_bundle_that_was_changed_changes_nothing(case: Case, server: LoopbackServer) -> None:
    data = bytearray((server.root or Path()).joinpath("new.raucb").read_bytes())
    data[200] ^= 1
    server.files["changed.raucb"] = bytes(data)
    before = case.idle.read_bytes()
    with pytest.raises(OverhaulError):
        case.installer.install(bundle(f"{server.url}/changed.raucb"), tell=lambda _line: None)
    assert case.idle.read_bytes() == before
    assert case.next_slot() == "A"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_bundle_changes_nothing(case: Case, server: LoopbackServer, share: float) -> None:
    data = (server.root or Path()).joinpath("new.raucb").read_bytes()
    server.files["short.raucb"] = data[: int(len(data) * share)]
    before = case.idle.read_bytes()
    with pytest.raises(OverhaulError):
        case.installer.install(bundle(f"{server.url}/short.raucb"), tell=lambda _line: None)
    assert case.idle.read_bytes() == before
    assert case.next_slot() == "A"


def test_a_store_that_lies_leaves_the_old_system_to_start(case: Case, server: LoopbackServer) -> None:
    lied_about = chunk_names(server)
    for name in lied_about:
        server.files[name] = b"these bytes are no chunk"
    with pytest.raises(OverhaulError):
        case.installer.install(bundle(f"{server.url}/new.raucb"), tell=lambda _line: None)
    assert case.next_slot() == "A"

    for name in lied_about:
        del server.files[name]
    case.installer.install(bundle(f"{server.url}/new.raucb"), tell=lambda _line: None)
    assert case.idle.read_bytes()[: len(NEW)] == NEW
    assert case.next_slot() == "B"


def test_installing_again_is_harmless(case: Case, server: LoopbackServer) -> None:
    for _time in range(2):
        case.installer.install(bundle(f"{server.url}/new.raucb"), tell=lambda _line: None)
    assert case.idle.read_bytes()[: len(NEW)] == NEW
    assert case.next_slot() == "B"


def chunk_names(server: LoopbackServer) -> list[str]:
    root = server.root or Path()
    return [str(path.relative_to(root)) for path in root.glob("new.castr/*/*.cacnk")]
