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
    configuration = configured(device, server, method=method)
    address = f"{server.url}/{stem}.raucb"
    done = run_client("--config", configuration, "--update-from-url", address, environment=device.environment)
    assert (done.returncode, device.slot_b.read_bytes()[: len(NEW)]) == (0, NEW), done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("0%", "100%")
    assert device.told_the_boot_loader() == ["set-state B bad", "set-primary B"]


@pytest.mark.parametrize("method", ["rauc", "rauc-command"])
def test_a_bundle_beside_the_device_is_installed(
    published: tuple[Path, Signer], device: RaucDevice, server: LoopbackServer, method: str
) -> None:
    configuration = configured(device, server, method=method)
    bundle = published[0] / "chunked.raucb"
    done = run_client("--config", configuration, "--update-from-url", bundle, environment=device.environment)
    assert (done.returncode, device.slot_b.read_bytes()[: len(NEW)]) == (0, NEW), done.stderr


def test_chunks_of_the_running_slot_are_not_fetched(device: RaucDevice, server: LoopbackServer) -> None:
    configuration = configured(device, server, method="rauc")
    done = run_client(
        "--config", configuration, "--update-from-url", f"{server.url}/chunked.raucb", environment=device.environment
    )
    assert done.returncode == 0, done.stderr
    fetched = {seen.path for seen in server.requests if seen.path.endswith(".cacnk")}
    stored = list((server.root or Path()).glob("chunked.castr/*/*.cacnk"))
    assert 0 < len(fetched) < len(stored) / 2


@pytest.mark.parametrize("method", ["rauc", "rauc-command"])
@pytest.mark.parametrize(
    ("stem", "reason"), [("foreign", "signature verification failed"), ("absent", "HTTP returned >=400")]
)
def test_what_rauc_refuses_is_told_and_remembered(
    device: RaucDevice, server: LoopbackServer, method: str, stem: str, reason: str
) -> None:
    before = device.slot_b.read_bytes()
    configuration = configured(device, server, method=method)
    address = f"{server.url}/{stem}.raucb"
    done = run_client("--config", configuration, "--update-from-url", address, environment=device.environment)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert device.slot_b.read_bytes() == before
    [line] = (device.directory / "runtime/failed_attempts.log").read_text().splitlines()
    assert line.startswith("FAILED UPDATE: ")
    assert reason in line


def test_without_a_journal_the_steps_of_rauc_are_told(device: RaucDevice, server: LoopbackServer) -> None:
    (device.programs / "journalctl").write_text("#!/bin/sh\nexit 1\n")
    configuration = configured(device, server, method="rauc")
    address = f"{server.url}/plain.raucb"
    done = run_client("--config", configuration, "--update-from-url", address, environment=device.environment)
    assert done.returncode == 0, done.stderr
    percents = [int(line.removesuffix("%")) for line in done.stdout.splitlines()]
    assert percents == sorted(percents)
    assert percents[-1] == 100


def test_quiet_prints_nothing(device: RaucDevice, server: LoopbackServer) -> None:
    configuration = configured(device, server, method="rauc")
    address = f"{server.url}/plain.raucb"
    done = run_client("-q", "-c", configuration, "--update-from-url", address, environment=device.environment)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_rauc_that_does_not_run_is_named(device: RaucDevice, server: LoopbackServer, tmp_path: Path) -> None:
    configuration = configured(device, server, method="rauc")
    nowhere = {**device.environment, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/nowhere"}
    done = run_client("-c", configuration, "--update-from-url", f"{server.url}/plain.raucb", environment=nowhere)
    assert done.returncode == 1
    assert "de.pengutronix.rauc did not carry out InstallBundle" in done.stderr
