"""Bundles for Overhaul's own slots: what is verified, what is refused, and what the agent will find afterwards.

Bundles are made by the real RAUC; only `verity` ones it cannot install without device mapper, which is not needed here.
"""

import configparser
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.atomupd_devices import (
    Signer,
    image_bytes,
    make_bundle,
    make_casync_bundle,
    make_signer,
    run,
    write_slots_device,
)
from tests.loopback import LoopbackServer, serving

from overhaul.dialects.atomupd.device.bundle import (
    UnsuitableBundleError,
    UntrustedBundleError,
    open_bundle,
    verity_root,
)
from overhaul.dialects.atomupd.device.installing import Bundle
from overhaul.dialects.atomupd.device.slots import (
    RefusedVersionError,
    SlotInstaller,
    UnconfirmedError,
    UnsettledError,
)
from overhaul.errors import OverhaulError
from overhaul.install.fileboot import FileBoot
from overhaul.install.settings import load_settings
from overhaul.install.state import EventKind, Phase, RefusedVersion, StateFile, with_refused
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings

OLD, NEW = image_bytes(1), image_bytes(2)


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


class Device:
    """A device with slots of Overhaul in files."""

    def __init__(self, directory: Path, signer: Signer, *, compatible: str = "") -> None:
        self.settings = load_settings(write_slots_device(directory, image=OLD))
        self.boot = FileBoot(Path(self.settings.boot.file), ("A", "B"))
        self.states = StateFile(Path(self.settings.state_directory))
        self.idle = directory / "slot-b"
        self.lines: list[str] = []
        self.installer = SlotInstaller(
            self.settings,
            boot=self.boot,
            keyring=signer.certificate,
            compatible=compatible,
            open_fetcher=lambda _url: open_fetcher(FetchSettings(allow_http=True)),
            clock=lambda: 1000.0,
        )

    def install(self, url: str, *, version: str = "3.7.0", build_id: str = "20240201.1") -> None:
        named = {"product": "steamos", "variant": "steamdeck", "arch": "amd64"}
        self.installer.install(Bundle(url=url, version=version, build_id=build_id, **named), tell=self.lines.append)


@pytest.fixture
def device(published: tuple[Path, Signer], tmp_path: Path) -> Device:
    return Device(tmp_path / "device", published[1])


def test_the_agent_finds_an_update_that_waits_for_its_restart(device: Device, server: LoopbackServer) -> None:
    device.install(f"{server.url}/new.raucb")
    state = device.states.load()
    assert state.phase is Phase.AWAITING_REBOOT
    assert state.target is not None
    assert (state.target.slot, state.target.content.release.build_id, state.target.fallback) == ("B", "20240201.1", "A")
    assert [event.kind for event in state.history] == [EventKind.STARTED, EventKind.INSTALLED]
    assert device.boot.simulate_boot() == "B"


def test_only_chunks_the_running_slot_lacks_are_fetched(device: Device, server: LoopbackServer) -> None:
    device.install(f"{server.url}/new.raucb")
    fetched = [seen.path for seen in server.requests if seen.path.endswith(".cacnk")]
    stored = list((server.root or Path()).glob("new.castr/*/*.cacnk"))
    assert len(fetched) == len(set(fetched))
    assert 0 < len(fetched) < len(stored) / 2


def test_an_interrupted_installation_fetches_the_rest_only(device: Device, server: LoopbackServer) -> None:
    kept: set[str] = set()
    counting = threading.Lock()

    def fail_all_but_two(path: str) -> None:
        # Several are asked for at once, each in a thread of the server.
        with counting:
            if path.endswith(".cacnk") and len(kept) < 2:
                kept.add(path)
            if path.endswith(".cacnk") and path not in kept:
                server.behave(path, statuses=[404] * 9)

    server.on_request = fail_all_but_two
    with pytest.raises(OverhaulError):
        device.install(f"{server.url}/new.raucb")
    assert (device.states.load().phase, device.boot.primary()) == (Phase.INSTALLING, "A")
    server.behaviours.clear()
    server.on_request = lambda _path: None
    before = len(server.requests)
    device.install(f"{server.url}/new.raucb")
    assert device.idle.read_bytes()[: len(NEW)] == NEW
    second = {seen.path for seen in server.requests[before:] if seen.path.endswith(".cacnk")}
    assert len(kept) == 2
    assert second
    assert kept.isdisjoint(second)


def test_an_update_that_waits_already_is_not_written_again(device: Device, server: LoopbackServer) -> None:
    device.install(f"{server.url}/new.raucb")
    before = len(server.requests)
    device.install(f"{server.url}/new.raucb")
    assert [seen.path for seen in server.requests[before:]] == ["new.raucb"]


def test_a_running_slot_that_is_not_confirmed_keeps_the_other_one(device: Device, server: LoopbackServer) -> None:
    device.install(f"{server.url}/new.raucb")
    device.boot.simulate_boot()
    with pytest.raises(UnconfirmedError, match="overhaul device confirm"):
        device.install(f"{server.url}/new.raucb", build_id="20240301.1")
    assert (device.idle.parent / "slot-a").read_bytes() == OLD


def test_an_update_that_fell_back_is_not_simply_tried_again(device: Device, server: LoopbackServer) -> None:
    device.install(f"{server.url}/new.raucb")
    # Started until the boot loader gives the slot up.
    while device.boot.simulate_boot() == "B":
        pass
    with pytest.raises(UnsettledError, match="overhaul device status"):
        device.install(f"{server.url}/new.raucb")


def test_a_version_that_failed_on_this_device_is_refused(device: Device, server: LoopbackServer) -> None:
    refused = RefusedVersion(version="3.7.0", build_id="20240201.1", reason="its health check failed", at=0)
    device.states.save(with_refused(device.states.load(), refused))
    with pytest.raises(RefusedVersionError, match="its health check failed"):
        device.install(f"{server.url}/new.raucb")
    assert device.states.load().phase is Phase.IDLE


def test_a_bundle_for_another_device_is_refused(
    published: tuple[Path, Signer], server: LoopbackServer, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device", published[1], compatible="Toaster")
    with pytest.raises(UnsuitableBundleError, match="is for 'Weather Station' and this device is 'Toaster'"):
        device.install(f"{server.url}/new.raucb")


def opened(bundle: Path, signer: Signer, tmp_path: Path) -> bytes:
    content = open_bundle(bundle, url="the bundle", keyring=signer.certificate, work=tmp_path)
    return b"".join(chunk.id for chunk in content.index)


def test_bundles_this_way_cannot_install_are_refused_by_name(tmp_path: Path) -> None:
    signer = make_signer(tmp_path)
    plain = make_bundle(tmp_path, "plain", NEW[:50_000], signer)
    with pytest.raises(UnsuitableBundleError, match=r"its image is not a casync index.*Method = rauc"):
        opened(plain, signer, tmp_path)
    assert not list(tmp_path.glob("bundle.*"))


def verity_bundle(tmp_path: Path, signer: Signer) -> Path:
    """Make a casync bundle in the verity format, which `rauc convert` cannot: of an index that is its image."""
    content = tmp_path / "content"
    content.mkdir()
    image = tmp_path / "image"
    image.write_bytes(NEW)
    run("casync", "make", f"--store={tmp_path / 'v.castr'}", content / "rootfs.img.caibx", image)
    (content / "padding.img").write_bytes(NEW[-600_000:])
    (content / "manifest.raucm").write_text(
        "[update]\ncompatible=x\nversion=1\n[bundle]\nformat=verity\n[image.rootfs]\nfilename=rootfs.img.caibx\n"
    )
    bundle = tmp_path / "verity.raucb"
    run("rauc", "bundle", f"--cert={signer.certificate}", f"--key={signer.key}", content, bundle)
    return bundle


def test_a_verity_bundle_is_verified_without_the_kernel(tmp_path: Path) -> None:
    signer = make_signer(tmp_path)
    bundle = verity_bundle(tmp_path, signer)
    data = bundle.read_bytes()
    size = int.from_bytes(data[-8:], "big")
    (tmp_path / "sig").write_bytes(data[-8 - size : -8])
    signed = run("openssl", "cms", "-verify", "-inform", "DER", "-in", tmp_path / "sig", "-CAfile", signer.certificate)
    manifest = configparser.ConfigParser()
    manifest.read_string(signed)
    section = manifest["bundle"]
    payload = data[: len(data) - 8 - size - int(section["verity-size"])]
    # More than one level of hashes, and more than one block in the lowest.
    assert len(payload) > 128 * 4096
    assert verity_root(payload, salt=bytes.fromhex(section["verity-salt"])).hex() == section["verity-hash"]

    # It is trusted; that it is refused after all is because this one says the size of its index, not of its image.
    with pytest.raises(UnsuitableBundleError, match="its manifest says"):
        opened(bundle, signer, tmp_path)
    for place in (5000, len(payload) - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        bundle.write_bytes(changed)
        with pytest.raises(UntrustedBundleError, match="does not have the signed hash"):
            opened(bundle, signer, tmp_path)


@pytest.mark.parametrize("place", [0, 100, -9, -1])
def test_no_byte_of_a_bundle_can_be_changed(published: tuple[Path, Signer], tmp_path: Path, place: int) -> None:
    changed = bytearray((published[0] / "new.raucb").read_bytes())
    changed[place] ^= 1
    bundle = tmp_path / "changed.raucb"
    bundle.write_bytes(changed)
    with pytest.raises(UntrustedBundleError):
        opened(bundle, published[1], tmp_path)


@pytest.mark.parametrize("size", [0, 1, 8, 9, 100])
def test_a_bundle_of_any_length_is_read_or_refused(published: tuple[Path, Signer], tmp_path: Path, size: int) -> None:
    bundle = tmp_path / "short.raucb"
    bundle.write_bytes((published[0] / "new.raucb").read_bytes()[-size:] if size else b"")
    with pytest.raises(UntrustedBundleError):
        opened(bundle, published[1], tmp_path)


def test_a_certificate_of_a_stranger_does_not_count(published: tuple[Path, Signer], tmp_path: Path) -> None:
    with pytest.raises(UntrustedBundleError):
        opened(published[0] / "new.raucb", make_signer(tmp_path, "stranger"), tmp_path)


def test_an_expired_certificate_does_not_count(published: tuple[Path, Signer], tmp_path: Path) -> None:
    signer = make_signer(tmp_path)
    bundle = make_casync_bundle(tmp_path, "old", NEW, signer)
    assert opened(bundle, signer, tmp_path)
    data = bundle.read_bytes()
    size = int.from_bytes(data[-8:], "big")
    payload, signature = tmp_path / "payload", tmp_path / "signature"
    payload.write_bytes(data[: -8 - size])
    expired = make_signer(tmp_path, "expired")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-key", str(expired.key), "-out", str(expired.certificate)),
            *("-subj", "/CN=expired", "-not_before", "20200101000000Z", "-not_after", "20200201000000Z"),
        ],
        check=False,
        capture_output=True,
    )
    dates = run("openssl", "x509", "-noout", "-enddate", "-in", expired.certificate)
    if "2020" not in dates:
        # OpenSSL before 3.4 sets dates only in its small authority.
        run("openssl", "x509", "-req", "-days", "-1", "-in", request(expired, tmp_path), "-signkey", expired.key,
            "-out", expired.certificate)  # fmt: skip
    keys: list[str | Path] = ["-signer", expired.certificate, "-inkey", expired.key]
    run("openssl", "cms", "-sign", "-binary", "-noattr", "-outform", "DER", "-in", payload, "-out", signature, *keys)
    signed = signature.read_bytes()
    bundle.write_bytes(payload.read_bytes() + signed + len(signed).to_bytes(8, "big"))
    with pytest.raises(UntrustedBundleError):
        opened(bundle, expired, tmp_path)


def request(signer: Signer, directory: Path) -> Path:
    """Write a request for a certificate of the signer's key."""
    path = directory / "request.pem"
    run("openssl", "req", "-new", "-key", signer.key, "-subj", "/CN=expired", "-out", path)
    return path
