"""The publisher's day, through the command line, with real file systems and a device that fetches the result."""

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.buckets import BUCKET, bucket_service
from tests.loopback import serving
from tests.tools import need
from tests.unit.publishing.building import random_bytes, write_image

from overhaul.cli import cli
from overhaul.content.assembler import assemble
from overhaul.content.plan import Way
from overhaul.content.preparing import Materials
from overhaul.errors import OverhaulError
from overhaul.policy.document import decode_policy
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.selection import Offer, decide
from overhaul.release.record import Release, decode_release
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings
from overhaul.trust.client import TrustedRepository

_LINE = ["--product", "kiosk", "--variant", "shop", "--arch", "x86_64"]
_NEW = "kiosk/shop/x86_64/1.1/20260502"
_OLD = "kiosk/shop/x86_64/1.0/20260501"

Overhaul = Callable[..., str]


@pytest.fixture
def overhaul(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Overhaul:
    """Return the command line, told of the repository by the environment as a person would."""
    monkeypatch.setenv("OVERHAUL_REPOSITORY", str(tmp_path / "repo"))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, arguments, standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.output

    return run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a small root file system: programs, links, an attribute of every kind a tree has."""
    tree = tmp_path / "tree"
    for folder in ("usr/bin", "usr/share/doc", "etc"):
        (tree / folder).mkdir(parents=True)
    for number in range(40):
        (tree / "usr" / "bin" / f"program-{number}").write_bytes(random_bytes(number, 40_000 + 1000 * number))
    (tree / "etc" / "os-release").write_text("ID=kiosk\nVERSION_ID=1.0\n")
    (tree / "etc" / "mtab").symlink_to("../proc/self/mounts")
    (tree / "usr" / "bin" / "again").hardlink_to(tree / "usr" / "bin" / "program-0")
    (tree / "usr" / "bin" / "program-1").chmod(0o4755)
    return tree


def _change(tree: Path) -> None:
    (tree / "etc" / "os-release").write_text("ID=kiosk\nVERSION_ID=1.1\n")
    (tree / "usr" / "bin" / "program-7").rename(tree / "usr" / "bin" / "a-moved-program")
    changed = tree / "usr" / "bin" / "program-3"
    changed.write_bytes(changed.read_bytes()[:20_000] + b"a little new code" + changed.read_bytes()[20_000:])


def _json(text: str) -> Any:
    return json.loads(text)


def test_how_every_file_travels_in_a_delta_is_shown(tmp_path: Path, tree: Path, overhaul: Overhaul) -> None:
    need("mkfs.ext4")
    overhaul("init", str(tmp_path / "repo"), "--demo-keys", "--product=kiosk")
    overhaul("publish", str(tree), *_LINE, "--channel=stable", "--version=1.0", "--build-id=20260501")
    _change(tree)
    overhaul("publish", str(tree), *_LINE, "--channel=stable", "--version=1.1", "--build-id=20260502")

    shown = overhaul("release", "show", _NEW, "--delta")
    assert "usr/bin/program-3" in shown
    assert "etc/os-release" in shown
    assert "program-12" not in shown
    (report,) = _json(overhaul("release", "show", _NEW, "--delta", "--json"))["deltas"].values()
    by_path = {file["path"].rpartition("/")[2]: file for file in report["files"]}
    assert by_path["program-3"]["method"] == "covers"
    assert 0 < by_path["program-3"]["delta_size"] < 2000 < by_path["program-3"]["size"]

    for kept in (tmp_path / "repo/store/private/deltas").iterdir():
        kept.unlink()
    assert "was not kept" in overhaul("release", "show", _NEW, "--delta")


def test_two_images_with_a_delta_reach_a_device(tmp_path: Path, tree: Path, overhaul: Overhaul) -> None:
    for program in ("mkfs.ext4", "debugfs", "dumpe2fs"):
        need(program)
    assert "DEMO KEYS" in overhaul("init", str(tmp_path / "repo"), "--product", "kiosk", "--demo-keys")
    overhaul("publish", str(tree), *_LINE, "--channel", "stable", "--version", "1.0", "--build-id", "20260501")
    _change(tree)
    told = overhaul("publish", str(tree), *_LINE, "--channel", "stable", "--version", "1.1", "--build-id", "20260502")
    assert "delta" in told
    assert _json(overhaul("repository", "verify", "--json"))["findings"] == []

    old, new, report = _update_device(tmp_path)

    assert report.way is Way.DELTA
    assert report.bytes_received < 100_000
    assert new.image.deltas[0].source_index == old.image.index.sha256
    subprocess.run([need("e2fsck"), "-fn", str(tmp_path / "slot-b")], check=True, capture_output=True)
    dump = [need("debugfs"), "-R", "cat /etc/os-release", str(tmp_path / "slot-b")]
    assert b"VERSION_ID=1.1" in subprocess.run(dump, check=True, capture_output=True).stdout


def _update_device(directory: Path) -> tuple[Release, Release, Any]:
    """Fetch both releases as a device would: policy, offer, record, old image by chunks, new image over it."""
    public = directory / "repo" / "store" / "public"
    fetcher = open_fetcher(FetchSettings(allow_http=True))
    with serving(public) as server:
        trusted = TrustedRepository(
            state_directory=directory / "state",
            base_url=server.url,
            bootstrap_root=(directory / "repo" / "root.json").read_bytes(),
            fetcher=fetcher,
            clock=lambda: datetime.now(UTC),
        )
        trusted.refresh()
        policy = decode_policy(trusted.read_target("kiosk/policy/stable.json"))
        facts = DeviceFacts(
            product="kiosk",
            variant="shop",
            arch="x86_64",
            channel="stable",
            version="1.0",
            build_id="20260501",
            hardware={},
            rollout_id="device",
            refused=(),
        )
        decision = decide(policy, facts, now=int(datetime.now(UTC).timestamp()))
        assert isinstance(decision, Offer)
        old = decode_release(trusted.read_target("kiosk/releases/shop/x86_64/1.0/20260501.json"))
        new = decode_release(trusted.read_target(decision.entry.release_id("kiosk").target_path))
        for slot in ("slot-a", "slot-b"):
            with (directory / slot).open("wb") as stream:
                stream.truncate(max(old.image.size, new.image.size))
        materials = Materials(base_url=server.url, fetcher=fetcher)
        first = assemble(old, materials, target=directory / "slot-a")
        assert first.way is Way.CHUNKS
        report = assemble(
            new,
            replace(materials, source=directory / "slot-a", source_index=old.image.index.sha256),
            target=directory / "slot-b",
        )
    return old, new, report


def test_a_tree_and_a_tar_of_it_are_one_image(tmp_path: Path, tree: Path, overhaul: Overhaul) -> None:
    need("mkfs.ext4")
    overhaul("init", str(tmp_path / "repo"), "--product", "kiosk", "--demo-keys")
    release = ["--channel", "stable", "--version", "1.0", "--build-id", "20260501"]
    overhaul("publish", str(tree), *_LINE, *release)
    with tarfile.open(tmp_path / "tree.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tree, arcname=".")

    assert "already, with exactly these bytes" in overhaul("publish", str(tmp_path / "tree.tar.gz"), *_LINE, *release)


def test_the_life_of_a_release(tmp_path: Path, tree: Path, overhaul: Overhaul) -> None:
    need("mkfs.ext4")
    overhaul("init", str(tmp_path / "repo"), "--product", "kiosk", "--demo-keys")
    for version, build in (("1.0", "20260501"), ("1.1", "20260502")):
        options = ["--version", version, "--build-id", build, "--no-delta", "--notes", f"notes of {version}"]
        overhaul("publish", str(tree), *_LINE, "--channel", "beta", *options)
        _change(tree) if version == "1.0" else None
    overhaul("release", "promote", _OLD, "--from", "beta", "--to", "stable")
    overhaul("release", "promote", _NEW, "--from", "beta", "--to", "stable", "--rollout", "5")
    overhaul("channel", "rollout", _NEW, "25", "--channel", "stable")
    overhaul("release", "recall", _NEW, "--channel", "beta", "--reason", "loses the network", "--allow-lower")

    shown = overhaul("release", "show", _NEW)
    assert "open to 25 % of the devices" in shown
    assert "recalled: loses the network" in shown
    assert "notes of 1.1" in shown
    assert [one["release"] for one in _json(overhaul("release", "list", "--json"))] == [_NEW, _OLD]
    assert "recalled" in overhaul("channel", "list")
    stats = _json(overhaul("repository", "stats", "--json"))
    assert stats["products"][0]["releases"] == 2

    overhaul("release", "drop", _OLD, "--channel", "stable")
    overhaul("release", "drop", _OLD, "--channel", "beta")
    overhaul("channel", "floor", "kiosk/stable", "--variant", "shop", "--arch", "x86_64", "--support", "1.1")
    assert "no channel lists it" not in overhaul("repository", "prune", "--dry-run")
    # In beta the only release that could be offered was recalled, so no floor can stand there.
    with pytest.raises(OverhaulError):
        overhaul("channel", "floor", "kiosk/beta", "--variant", "shop", "--arch", "x86_64", "--support", "1.1")
    overhaul("release", "drop", _NEW, "--channel", "beta")
    assert f"drop   {_OLD}" in overhaul("repository", "prune")
    assert _OLD not in overhaul("release", "list")
    assert "timestamp" in overhaul("repository", "refresh")
    assert "0 faults" not in overhaul("repository", "verify")
    roles = {one["role"] for one in _json(overhaul("keys", "list", "--json"))["roles"]}
    assert roles >= {"root", "targets", "snapshot", "timestamp", "kiosk", "kiosk-policy"}


def test_a_moved_repository_still_works(tmp_path: Path, tree: Path, overhaul: Overhaul, monkeypatch: Any) -> None:
    need("mkfs.ext4")
    (tmp_path / "here").mkdir()
    overhaul("init", str(tmp_path / "here" / "repo"), "--product", "kiosk", "--demo-keys")
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.setenv("OVERHAUL_REPOSITORY", str(tmp_path / "there" / "repo"))
    overhaul("publish", str(tree), *_LINE, "--channel", "stable", "--version", "1.0", "--build-id", "1")

    assert _json(overhaul("repository", "verify", "--json"))["findings"] == []


def test_a_repository_in_a_bucket_publishes_verifies_and_prunes(tmp_path: Path, overhaul: Overhaul) -> None:
    with bucket_service() as endpoint:
        address = ["--storage", f"s3://{BUCKET}/updates", "--endpoint", endpoint, "--allow-http"]
        overhaul("init", str(tmp_path / "repo"), "-p", "kiosk", "--demo-keys", *address)
        for number in range(2):
            image = write_image(tmp_path / "image", random_bytes(1), random_bytes(2 + number))
            options = ["--channel", "stable", "--version", f"1.{number}", "--build-id", "1", "--castr"]
            overhaul("publish", str(image), *_LINE, *options)
        sound = _json(overhaul("repository", "verify", "--json"))
        overhaul("release", "drop", "kiosk/shop/x86_64/1.0/1", "--channel", "stable")
        floor = ["--variant", "shop", "--arch", "x86_64", "--support", "1.1"]
        overhaul("channel", "floor", "kiosk/stable", *floor)
        pruned = overhaul("repository", "prune", "--grace-days", "0")
        after = _json(overhaul("repository", "verify", "--json"))

    assert sound["findings"] == []
    assert sound["releases"] == 2
    assert "drop   kiosk/shop/x86_64/1.0/1" in pruned
    assert after["findings"] == []
    assert after["releases"] == 1


def test_the_real_casync_extracts_what_is_published_for_it(tmp_path: Path, tree: Path, overhaul: Overhaul) -> None:
    need("mkfs.ext4")
    overhaul("init", str(tmp_path / "repo"), "--product", "kiosk", "--demo-keys")
    options = ["--channel", "stable", "--version", "1.0", "--build-id", "7", "--castr"]
    done = _json(overhaul("publish", str(tree), *_LINE, *options, "--json"))
    castr = tmp_path / "repo" / "store" / "public" / "castr" / "kiosk"
    index = castr / "shop" / "x86_64" / "1.0-7.caibx"
    command = [need("casync"), "extract", f"--store={castr / 'default.castr'}", str(index), str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)

    assert (tmp_path / "out").stat().st_size == done["release"]["image"]["size"]
    subprocess.run([need("e2fsck"), "-fn", str(tmp_path / "out")], check=True, capture_output=True)
