"""An installation into Overhaul's slots, killed before each of its durable steps, ends right when it is run again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overhaul.dialects.atomupd.device.installing import Bundle
from overhaul.dialects.atomupd.device.slots import SlotInstaller
from overhaul.install.fileboot import FileBoot
from overhaul.install.settings import load_settings
from overhaul.install.state import Phase, StateFile
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings
from tests.atomupd_devices import Signer, image_bytes, make_casync_bundle, make_signer, write_slots_device
from tests.crash.killing import run_killed_at
from tests.loopback import LoopbackServer, serving

OLD, NEW = image_bytes(1, 400_000), image_bytes(2, 400_000)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Signer]:
    directory = tmp_path_factory.mktemp("published")
    signer = make_signer(directory)
    make_casync_bundle(directory, "new", NEW, signer)
    return directory, signer


@pytest.fixture
def server(published: tuple[Path, Signer]) -> Iterator[LoopbackServer]:
    with serving(published[0]) as running:
        yield running


def installing(configuration: Path, signer: Signer, server: LoopbackServer) -> Callable[[], None]:
    """Return an action that installs; everything is opened inside it, as in a process of its own."""

    def install() -> None:
        settings = load_settings(configuration)
        installer = SlotInstaller(
            settings,
            boot=FileBoot(Path(settings.boot.file), ("A", "B")),
            keyring=signer.certificate,
            compatible="",
            open_fetcher=lambda _url: open_fetcher(FetchSettings(allow_http=True)),
            clock=lambda: 0.0,
        )
        bundle = Bundle(url=f"{server.url}/new.raucb", version="3.7.0", build_id="20240201.1")
        installer.install(bundle, tell=lambda _line: None)

    return install


def test_killed_anywhere_the_device_starts_the_old_or_the_whole_new_system_and_goes_on(
    published: tuple[Path, Signer], server: LoopbackServer, tmp_path: Path
) -> None:
    reference = installing(write_slots_device(tmp_path / "whole", image=OLD), published[1], server)
    points = run_killed_at(reference, 10**9)
    assert points is not None
    assert points > 15
    # The middle is all writing of chunks; a few of those stand for the rest.
    chosen = sorted({*range(12), *range(12, points - 12, max(1, points // 6)), *range(points - 12, points)})
    for point in chosen:
        directory = tmp_path / f"at-{point}"
        configuration = write_slots_device(directory, image=OLD)
        action = installing(configuration, published[1], server)
        assert run_killed_at(action, point) is None
        boot = FileBoot(directory / "boot.json", ("A", "B"))
        slot_is_new = (directory / "slot-b").read_bytes()[: len(NEW)] == NEW
        assert boot.primary() == "A" or slot_is_new
        assert (directory / "slot-a").read_bytes() == OLD

        assert run_killed_at(action, 10**9) is not None
        assert boot.primary() == "B"
        assert (directory / "slot-b").read_bytes()[: len(NEW)] == NEW
        assert StateFile(directory / "state").load().phase is Phase.AWAITING_REBOOT
        assert not (directory / "state/incoming-bundle").exists()
