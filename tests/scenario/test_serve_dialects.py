"""`overhaul serve` before devices of other systems: one publish, and what each of them finds over HTTP."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner
from tests.asgi import Site
from tests.atomupd_pools import put_image, write_configuration
from tests.dialect_tables import dialect_tables
from tests.tools import need

from overhaul.cli import cli

pytestmark = pytest.mark.xdist_group("serve-dialects")


def _overhaul(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for program in ("rauc", "mksquashfs", "mkfs.ext4", "casync", "openssl", "ostree"):
        need(program)
    directory = tmp_path_factory.mktemp("dialects")
    repository, tree = directory / "repository", directory / "tree"
    _overhaul("init", str(repository), "--demo-keys", "--product=kiosk")
    tables = dialect_tables(directory)
    put_image(directory / "pool", "3.1", "20240101.1")
    pool = write_configuration(directory / "pool.conf", directory / "pool")
    settings = repository / "overhaul.toml"
    text = settings.read_text().replace("castr = false", "castr = true")
    settings.write_text(text.replace("atomupd_pools = []", f"atomupd_pools = [{json.dumps(str(pool))}]") + tables)
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/lib").mkdir()
    for version, build_id in (("1.0", "20260501.1"), ("1.1", "20260601.1")):
        (tree / "usr/lib/os-release").write_text(f"ID=kiosk\nVERSION_ID={version}\nBUILD_ID={build_id}\n")
        (tree / "usr/bin/program").write_text(f"program {version}\n" * 500)
        for path in tree.rglob("*"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        _overhaul(
            "publish", str(tree), "--repository", str(repository), "--product=kiosk", "--variant=shop",
            "--arch=x86_64", "--channel=stable", f"--version={version}", f"--build-id={build_id}", "--no-delta",
        )  # fmt: skip
    return repository


@pytest.fixture(scope="module")
def site(repository: Path) -> Iterator[Site]:
    with _serving(repository) as site:
        yield site


@contextmanager
def _serving(repository: Path) -> Iterator[Site]:
    command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(repository), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "Serving" in line, process.stderr.read() if process.stderr else ""
            yield Site(int(line.strip().rstrip("/").rpartition(":")[2]))
        finally:
            process.terminate()


def test_a_steamos_device_is_led_to_a_bundle_and_its_chunks(repository: Path, site: Site) -> None:
    asked = {
        "product": "kiosk", "release": "holo", "variant": "shop", "arch": "x86_64", "version": "1.0",
        "buildid": "20260501.1", "branch": "stable",
    }  # fmt: skip
    answer = json.loads(site.ask(f"/atomupd/kiosk/updates?{urlencode(asked)}").body)
    (candidate,) = answer["minor"]["candidates"]
    assert candidate["image"]["version"] == "1.1.0"

    bundle = f"/atomupd/kiosk/images/{candidate['update_path']}"
    public = repository / "store/public"
    begun = site.ask(bundle, range="bytes=0-99")
    assert begun.status == 206
    assert begun.body == (public / bundle[1:]).read_bytes()[:100]
    assert "immutable" in begun.header("cache-control")
    store = public / "castr/kiosk/default.castr"
    chunk = next(store.rglob("*.cacnk"))
    beside = site.ask(f"{bundle.removesuffix('.raucb')}.castr/{chunk.relative_to(store)}")
    assert beside.body == chunk.read_bytes()


def test_an_existing_pool_is_answered_for_by_the_same_process(site: Site) -> None:
    asked = {
        "product": "steamos", "release": "holo", "variant": "steamdeck", "arch": "amd64", "version": "3.0",
        "buildid": "20230101.1", "branch": "stable",
    }  # fmt: skip
    answer = json.loads(site.ask(f"/updates?{urlencode(asked)}").body)
    assert answer["minor"]["candidates"][0]["image"]["version"] == "3.1.0"
    assert site.ask("/").header("content-type").startswith("text/html")


def test_a_real_ostree_pulls_from_it(repository: Path, site: Site, tmp_path: Path) -> None:
    place = tmp_path / "pulled"
    for arguments in (
        ["init", f"--repo={place}", "--mode=bare-user"],
        ["remote", "add", f"--repo={place}", "--no-gpg-verify", "kiosk", f"{site.url}ostree/kiosk"],
        ["pull", f"--repo={place}", "kiosk", "kiosk/x86_64/shop/stable"],
    ):
        subprocess.run([need("ostree"), *arguments], check=True, capture_output=True)
    shown = subprocess.run(
        [need("ostree"), "cat", f"--repo={place}", "kiosk:kiosk/x86_64/shop/stable", "/usr/lib/os-release"],
        check=True,
        capture_output=True,
    )
    assert b"VERSION_ID=1.1\n" in shown.stdout
    summary = site.ask("/ostree/kiosk/summary")
    assert summary.body == (repository / "store/public/ostree/kiosk/summary").read_bytes()
    assert summary.header("cache-control") == "no-cache"
    assert site.ask("/ostree/kiosk/.lock").status == 404


def test_a_swupd_device_finds_its_version(repository: Path, site: Site) -> None:
    base = "/swupd/kiosk/shop/x86_64"
    version = int(site.ask(f"{base}/version/format4/latest").body)
    manifest = site.ask(f"{base}/{version}/Manifest.MoM")
    assert version == 20
    assert manifest.status == 200
    assert "immutable" in manifest.header("cache-control")
    assert site.ask(f"{base}/channels/stable/version/format4/latest").body.strip() == b"20"
    signature = site.ask(f"{base}/{version}/Manifest.MoM.sig")
    assert (signature.status, signature.header("cache-control")) == (200, "no-cache")


def test_a_pool_file_that_cannot_be_read_is_one_sentence_also_for_several_processes(repository: Path) -> None:
    command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(repository), "--port", "0"]
    text = (repository / "overhaul.toml").read_text()
    broken = text.replace("atomupd_pools = [", 'atomupd_pools = ["/nowhere/pool.conf", ')
    (repository / "overhaul.toml").write_text(broken)
    try:
        ended = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, check=False)
    finally:
        (repository / "overhaul.toml").write_text(text)
    assert ended.returncode == 7
    assert "/nowhere/pool.conf" in ended.stderr
    assert "Traceback" not in ended.stderr
