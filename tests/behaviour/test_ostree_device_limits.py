"""Devices and commits that only the `ostree` program can serve: our own back end says so before it fetches anything."""

from collections.abc import Iterator, Mapping

import msgspec
import pytest
from tests.loopback import LoopbackServer, serving
from tests.ostree_scene import OstreeDevice, Publisher, quiet_directory

from overhaul.dialects.ostree.device.immutable import set_immutable
from overhaul.dialects.ostree.device.settings import DeploySettings
from overhaul.dialects.ostree.device.updating import Mode, Result, run_cycle
from overhaul.errors import DeviceError

COMPOSEFS = {"usr/lib/ostree/prepare-root.conf": "[composefs]\nenabled = yes\n"}
SELINUX = {"usr/etc/selinux/config": "# of a test\nSELINUX=enforcing\n"}


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with quiet_directory() as place:
        yield Publisher(place / "publisher")


@pytest.fixture
def server(publisher: Publisher) -> Iterator[LoopbackServer]:
    with serving(publisher.repository) as running:
        yield running


@pytest.fixture
def device(publisher: Publisher, server: LoopbackServer) -> OstreeDevice:
    return OstreeDevice.make(publisher.directory.parent / "device", server.url)


def choose(device: OstreeDevice, backend: str) -> None:
    """Configure the device's back end."""
    deploy = msgspec.structs.replace(device.settings.deploy, backend=backend)
    assert isinstance(deploy, DeploySettings)
    device.settings = msgspec.structs.replace(device.settings, deploy=deploy)


def put(device: OstreeDevice, name: str, content: str) -> None:
    """Write a file into what runs."""
    directory = device.open().directory(device.open().deployments()[0])
    set_immutable(directory, immutable=False)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text(content)
    set_immutable(directory, immutable=True)


def add_grub(device: OstreeDevice) -> None:
    """Let the boot loader have a configuration of its own, as libostree links it."""
    (device.sysroot / "boot/grub2").mkdir()
    (device.sysroot / "boot/grub2/grub.cfg").symlink_to("../loader/grub.cfg")


@pytest.mark.parametrize("kind", ["image", "configuration", "labels", "boot loader"])
def test_a_device_of_such_a_kind_is_told_before_anything_is_fetched(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice, kind: str
) -> None:
    publisher.publish("1")
    device.install()
    if kind == "boot loader":
        add_grub(device)
    else:
        # Debian's `ostree` makes no images, and labels need a policy: stand-ins for what another one leaves.
        images = {".ostree.cfs": "an image"}
        kinds: dict[str, Mapping[str, str | None]] = {"image": images, "configuration": COMPOSEFS, "labels": SELINUX}
        for name, content in kinds[kind].items():
            put(device, name, content or "")
    publisher.publish("2")
    choose(device, "own")
    server.requests.clear()
    with pytest.raises(DeviceError, match=r'cannot be updated: .* backend = "ostree" in /etc/overhaul'):
        run_cycle(device.updater(), Mode.BOTH)
    assert server.requests == []
    choose(device, "automatic")
    assert device.updater().backend.name == "ostree"


def test_the_kernels_arguments_have_the_last_word(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1", COMPOSEFS)
    device.install()
    entry = next((device.sysroot / "boot/loader/entries").glob("*.conf"))
    entry.write_text(entry.read_text().replace(" quiet", " quiet ostree.prepare-root.composefs=0"))
    second = publisher.publish("2", COMPOSEFS)
    assert device.updater().backend.name == "own"
    outcome = run_cycle(device.updater(), Mode.BOTH)
    assert (outcome.result, outcome.commit) == (Result.DEPLOYED, second)


@pytest.mark.parametrize("files", [COMPOSEFS, SELINUX])
def test_the_first_commit_of_such_a_kind_is_not_deployed(
    publisher: Publisher, device: OstreeDevice, files: dict[str, str | None]
) -> None:
    first = publisher.publish("1")
    device.install()
    second = publisher.publish("2", files)
    choose(device, "own")
    with pytest.raises(DeviceError, match=f'{second} cannot be deployed.*backend = "ostree"'):
        run_cycle(device.updater(), Mode.BOTH)
    assert device.deployed() == [first]
    device.fsck()


def test_an_ostree_that_makes_no_images_does_not_deploy_what_needs_one(
    publisher: Publisher, device: OstreeDevice
) -> None:
    """Debian 12's knows nothing of them: it would let a tree boot next that does not start."""
    first = publisher.publish("1")
    device.install()
    device.booted = ""
    second = publisher.publish("2", COMPOSEFS)
    choose(device, "ostree")
    with pytest.raises(DeviceError, match=rf"{second} cannot be deployed.* image.* ostree 20\d\d\.\d+ does not make"):
        run_cycle(device.updater(), Mode.BOTH)
    assert device.deployed() == [first]
    third = publisher.publish("3", {**COMPOSEFS, "usr/lib/ostree/prepare-root.conf": "[composefs]\nenabled = maybe\n"})
    assert run_cycle(device.updater(), Mode.BOTH).commit == third
