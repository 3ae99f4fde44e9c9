"""The read-me flow of the SteamOS updater, from a checkout: images, server, client, an update found and installed.

Both protocols, both generations of clients, the real server programs, the real RAUC.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.atomupd_devices import (
    RaucDevice,
    Signer,
    image_bytes,
    make_casync_bundle,
    make_signer,
    rauc_device,
    run,
    run_client,
    write_configuration,
)
from tests.loopback import LoopbackServer, serving
from tests.waiting import until

PROJECT = Path(__file__).parents[2]
OLD, NEW = image_bytes(1), image_bytes(2)


def program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Signer]:
    """The example's image hierarchy, with a real bundle and chunk store for each image."""
    directory = tmp_path_factory.mktemp("published")
    run(sys.executable, PROJECT / "examples/atomupd/make-image-hierarchy.py", directory / "images")
    signer = make_signer(directory)
    make_casync_bundle(directory, "real", NEW, signer)
    for bundle in [*directory.glob("images/**/*.raucb"), *directory.glob("images-snapshots/**/*.raucb")]:
        bundle.write_bytes((directory / "real.raucb").read_bytes())
        bundle.with_suffix(".castr").rmdir()
        bundle.with_suffix(".castr").symlink_to(directory / "real.castr")
    return directory, signer


@pytest.fixture
def device(published: tuple[Path, Signer], tmp_path: Path) -> Iterator[RaucDevice]:
    with rauc_device(tmp_path / "device", published[1], image=OLD) as running:
        yield running


@pytest.fixture
def web(published: tuple[Path, Signer]) -> Iterator[LoopbackServer]:
    """The web server that carries images and static answers."""
    with serving(published[0]) as running:
        yield running


@contextmanager
def query_server(published: Path, example: str, directory: Path) -> Iterator[str]:
    """Run the real server on an example configuration, and yield its address."""
    text = (PROJECT / "examples/atomupd" / example).read_text()
    configuration = directory / "server.conf"
    text = re.sub(r"Port = [0-9]+", "Port = 0", text)
    configuration.write_text(text.replace("localhost", "127.0.0.1"))
    log = directory / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [program("steamos-atomupd-server"), "-c", configuration], cwd=published, stdout=stream, stderr=stream
        )

    def told() -> "re.Match[str] | None":
        assert server.poll() is None, log.read_text()
        return re.search(r"Listening on 127\.0\.0\.1 port ([0-9]+)\n", log.read_text())

    try:
        listening = until(told)
        assert listening is not None
        yield f"http://127.0.0.1:{listening[1]}"
    finally:
        server.terminate()
        server.wait()


def configured(device: RaucDevice, *, server: dict[str, str], images: str, manifest: dict[str, str]) -> Path:
    path = device.directory / "manifest.json"
    path.write_text(json.dumps(manifest))
    return write_configuration(
        device.directory / "client.conf",
        {
            "Server": {**server, "ImagesUrl": images},
            "Host": {"RuntimeDir": str(device.directory / "run"), "Manifest": str(path)},
            "Client": {"AllowHttp": "yes"},
            "Install": {"RaucConfiguration": str(device.configuration)},
        },
    )


def os_release(directory: Path, **fields: str) -> Path:
    path = directory / "os-release"
    path.write_text("".join(f"{name}={value}\n" for name, value in fields.items()))
    return path


def test_an_early_client_asks_finds_and_installs_the_next_snapshot(
    published: tuple[Path, Signer], device: RaucDevice, web: LoopbackServer, tmp_path: Path
) -> None:
    manifest = json.loads(
        run(
            program("steamos-atomupd-mkmanifest"),
            "--os-release-path",
            os_release(
                tmp_path,
                ID="steamos",
                VERSION_CODENAME="clockwerk",
                VARIANT_ID="devel",
                VERSION_ID="snapshot",
                BUILD_ID="20190201.1",
            ),
            "--arch=amd64",
        )
    )
    with query_server(published[0], "server-snapshots.conf", tmp_path) as address:
        configuration = configured(
            device, server={"QueryUrl": address}, images=f"{web.url}/images-snapshots", manifest=manifest
        )
        done = run_client("-c", configuration, "--query-only", environment=device.environment)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        kept = json.loads((device.directory / "run/update.json").read_text())
        found = [one["image"]["buildid"] for one in kept["minor"]["candidates"]]
        assert found == ["20190201.9", "20190201.10"]

        done = run_client("-c", configuration, environment=device.environment)
        assert done.returncode == 1, done.stderr
        assert device.slot_b.read_bytes()[: len(NEW)] == NEW

        newest = {**manifest, "release": "doom", "buildid": "20190302.1"}
        configured(device, server={"QueryUrl": address}, images=web.url, manifest=newest)
        done = run_client("-c", configuration, environment=device.environment)
        assert done.returncode == 0, done.stderr
        assert not (device.directory / "run/update.json").exists()


@pytest.mark.parametrize("protocol", ["query", "static"])
def test_a_client_of_today_is_led_over_the_checkpoint(
    published: tuple[Path, Signer], device: RaucDevice, web: LoopbackServer, tmp_path: Path, protocol: str
) -> None:
    manifest = {
        "product": "steamos",
        "release": "clockwerk",
        "variant": "steamdeck",
        "default_update_branch": "stable",
        "arch": "amd64",
        "version": "3.0",
        "buildid": "20190201.0",
    }
    images = f"{web.url}/images"
    with query_server(published[0], "server-versions.conf", tmp_path) as address:
        server = {"QueryUrl": address}
        if protocol == "static":
            meta = tmp_path / "meta"
            meta.mkdir()
            text = (PROJECT / "examples/atomupd/server-versions.conf").read_text()
            (tmp_path / "static.conf").write_text(text.replace("= images", f"= {published[0] / 'images'}"))
            run(program("steamos-atomupd-staticserver"), "-c", tmp_path / "static.conf", directory=meta)
            web.files.update({f"meta/{path.relative_to(meta)}": path.read_bytes() for path in meta.rglob("*.json")})
            server = {"MetaUrl": f"{web.url}/meta"}
        else:
            # Asked last, so a server that has no static files still answers.
            server["MetaUrl"] = f"{web.url}/nothing"
        configuration = configured(device, server=server, images=images, manifest=manifest)
        done = run_client("-c", configuration, "--query-only", environment=device.environment)
        assert done.returncode == 0, done.stderr
        found = [one["image"]["version"] for one in json.loads(done.stdout)["minor"]["candidates"]]
        assert found == ["3.1.0", "3.2.0"]

        done = run_client("-c", configuration, "--update-version", "20190210.1", environment=device.environment)
        assert done.returncode == 0, done.stderr
        assert device.slot_b.read_bytes()[: len(NEW)] == NEW
        assert device.told_the_boot_loader() == ["set-state B bad", "set-primary B"]

        newest = {**manifest, "version": "3.2", "buildid": "20190215.0", "requires_checkpoint": "1"}
        configured(device, server=server, images=images, manifest=newest)
        done = run_client("-c", configuration, environment={**device.environment, "TZ": os.environ.get("TZ", "UTC")})
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
