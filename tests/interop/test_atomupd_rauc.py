"""The client installs through the real RAUC: a real service, real bundles, a private bus, loopback HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.atomupd_devices import (
    RaucDevice,
    Signer,
    image_bytes,
    make_bundle,
    make_casync_bundle,
    make_signer,
    rauc_device,
    run_client,
    write_configuration,
)
from tests.loopback import LoopbackServer, serving

OLD, NEW = image_bytes(1), image_bytes(2)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Signer]:
    """Bundles of every kind, signed by one signer, and one signed by a stranger."""
    directory = tmp_path_factory.mktemp("published")
    signer = make_signer(directory)
    make_bundle(directory, "plain", NEW, signer)
    make_casync_bundle(directory, "chunked", NEW, signer)
    make_casync_bundle(directory, "foreign", NEW, make_signer(directory, "stranger"))
    return directory, signer


@pytest.fixture
def device(published: tuple[Path, Signer], tmp_path: Path) -> Iterator[RaucDevice]:
    with rauc_device(tmp_path / "device", published[1], image=OLD) as running:
        yield running


@pytest.fixture
def server(published: tuple[Path, Signer]) -> Iterator[LoopbackServer]:
    with serving(published[0]) as running:
        yield running


def configured(device: RaucDevice, server: LoopbackServer, *, method: str) -> Path:
    return write_configuration(
        device.directory / "client.conf",
        {
            "Server": {"MetaUrl": f"{server.url}/meta", "ImagesUrl": server.url},
            "Host": {"RuntimeDir": str(device.directory / "runtime")},
            "Client": {"AllowHttp": "yes"},
            "Install": {"Method": method, "RaucConfiguration": str(device.configuration)},
        },
    )


@pytest.mark.parametrize("method", ["rauc", "rauc-command"])
@pytest.mark.parametrize("stem", ["plain", "chunked"])
def test_a_bundle_is_installed_over_http(device: RaucDevice, server: LoopbackServer, method: str, stem: str) -> None:
    arguments = [
        "--config",
        configured(device, server, method=method),
        "--update-from-url",
        f"{server.url}/{stem}.raucb",
    ]
    done = run_client(arguments, environment=device.environment)
    assert (done.returncode, device.slot_b.read_bytes()[: len(NEW)]) == (0, NEW), done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("0%", "100%")
    assert device.told_the_boot_loader() == ["set-state B bad", "set-primary B"]
