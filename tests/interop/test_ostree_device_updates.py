"""Our updater between the real `ostree` on both sides: it publishes what we deploy, and reads what we wrote."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.loopback import LoopbackServer, serving
from tests.ostree_scene import BRANCH, OSNAME, REMOTE, NotedRestarts, OstreeDevice, Publisher, ostree, quiet_directory

from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.recordlock import RepositoryBusyError, record_locked
from overhaul.dialects.ostree.device.settings import NetworkSettings
from overhaul.dialects.ostree.device.updating import Mode, Result, confirm, roll_back, run_cycle
from overhaul.errors import DeviceError, NetworkError, TrustError


@pytest.fixture
def place() -> Iterator[Path]:
    with quiet_directory() as made:
        yield made


@pytest.fixture
def publisher(place: Path) -> Publisher:
    return Publisher(place / "publisher")


@pytest.fixture
def server(publisher: Publisher) -> Iterator[LoopbackServer]:
    with serving(publisher.repository) as running:
        yield running


@pytest.fixture
def device(place: Path, server: LoopbackServer) -> OstreeDevice:
    return OstreeDevice.make(place / "device", server.url)


def status(device: OstreeDevice) -> str:
    return ostree("admin", "status", f"--sysroot={device.sysroot}")


def test_two_updates_and_a_roll_back_are_what_the_real_ostree_reads(publisher: Publisher, device: OstreeDevice) -> None:
    first = publisher.publish("1")
    device.install()
    second = publisher.publish("2", {"usr/bin/new": "new in 2\n", "usr/bin/same": None})
    outcome = run_cycle(device.updater(), Mode.BOTH)
    assert (outcome.result, outcome.commit, outcome.version) == (Result.DEPLOYED, second, "2")
    assert device.deployed() == [second, first]
    device.fsck()
    assert status(device).index(second) < status(device).index(first)
    running = device.boot()
    tree = device.open().directory(running)
    assert (tree / "usr/bin/new").read_text() == "new in 2\n"
    assert not (tree / "usr/bin/same").exists()
    assert (tree / "usr/bin/shortcut").readlink() == Path("tool")
    assert running.entry.own_arguments == ("root=LABEL=root", "quiet")
    third = publisher.publish("3")
    assert run_cycle(device.updater(), Mode.BOTH).commit == third
    assert device.deployed() == [third, second]
    device.fsck()
    repository = BareRepository(device.repository)
    assert first not in {commit for _path, commit in repository.refs()}
    assert f"{first}.commit" not in repository.present()
    device.boot()
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.UP_TO_DATE
    device.restarter = NotedRestarts()
    assert roll_back(device.updater()).result is Result.ROLLED_BACK
    assert device.deployed() == [second, third]
    assert device.restarter.asked == [True]
    device.fsck()


def test_the_real_ostree_upgrades_what_we_deployed_and_we_what_it_did(
    publisher: Publisher, device: OstreeDevice
) -> None:
    publisher.publish("1")
    device.install()
    device.booted = ""
    device.etc().joinpath("local").write_text("kept\n")
    publisher.publish("2")
    run_cycle(device.updater(), Mode.BOTH)
    third = publisher.publish("3", {"usr/lib/modules/6.1/vmlinuz": "another kernel\n"})
    assert "Bootloader updated" in ostree("admin", "upgrade", f"--sysroot={device.sysroot}", f"--os={OSNAME}")
    assert device.deployed()[0] == third
    fourth = publisher.publish("4", {"usr/lib/modules/6.1/vmlinuz": "another kernel\n"})
    run_cycle(device.updater(), Mode.BOTH)
    assert device.deployed() == [fourth, third]
    assert device.etc().joinpath("local").read_text() == "kept\n"
    device.fsck()
    ostree("admin", "undeploy", f"--sysroot={device.sysroot}", "1")
    assert device.deployed() == [fourth]


def test_boot_checksums_titles_and_links_are_those_that_ostree_writes(publisher: Publisher, place: Path) -> None:
    publisher.publish("1")
    devices = []
    with serving(publisher.repository) as running:
        for name in ("ours", "theirs"):
            device = OstreeDevice.make(place / name, running.url)
            device.install()
            devices.append(device)
        publisher.publish("2", {"usr/lib/modules/6.1/devicetree": "a device tree\n"})
        devices[0].booted = devices[1].booted = ""
        run_cycle(devices[0].updater(), Mode.BOTH)
        ostree("admin", "upgrade", f"--sysroot={devices[1].sysroot}", f"--os={OSNAME}")
    listings = []
    for device in devices:
        root = device.sysroot
        entries = sorted(root.glob("boot/loader/entries/*"))
        links = {str(path.relative_to(root)): str(path.readlink()) for path in root.glob("ostree/boot.*/*/*/*")}
        kernels = {str(path.relative_to(root)): path.read_bytes() for path in root.glob("boot/ostree/*/*")}
        listings.append(({path.name: sorted(path.read_text().splitlines()) for path in entries}, links, kernels))
    for ours, theirs in zip(*listings, strict=True):
        assert ours == theirs


def test_a_delta_of_the_real_ostree_brings_everything(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    first = publisher.publish("1", {"usr/lib/big": "line of text\n" * 20_000})
    device.install()
    second = publisher.publish("2", {"usr/lib/big": "line of text\n" * 9_999 + "other\n" + "line of text\n" * 10_001})
    publisher.make_delta(first, second)
    server.requests.clear()
    assert run_cycle(device.updater(), Mode.BOTH).commit == second
    assert [seen.path for seen in server.requests if seen.path.startswith("objects/")] == [
        f"objects/{second[:2]}/{second[2:]}.commitmeta",
        f"objects/{second[:2]}/{second[2:]}.commit",
    ]
    device.fsck()


@pytest.mark.parametrize("damage", ["cut part", "flipped superblock", "missing part"])
def test_a_damaged_delta_costs_the_objects_and_nothing_else(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice, damage: str
) -> None:
    first = publisher.publish("1")
    device.install()
    second = publisher.publish("2")
    delta = publisher.make_delta(first, second)
    if damage == "cut part":
        (delta / "0").write_bytes((delta / "0").read_bytes()[:-20])
    elif damage == "missing part":
        (delta / "0").write_bytes(b"")
    else:
        data = bytearray((delta / "superblock").read_bytes())
        data[len(data) // 2] ^= 1
        (delta / "superblock").write_bytes(data)
    assert run_cycle(device.updater(), Mode.BOTH).commit == second
    device.fsck()


def test_without_a_summary_the_branch_itself_is_asked(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    second = publisher.publish("2")
    (publisher.repository / "summary").unlink()
    assert run_cycle(device.updater(), Mode.BOTH).commit == second


def test_a_tampered_object_is_refused_and_nothing_is_deployed(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    first = publisher.publish("1")
    device.install()
    publisher.publish("2", {"usr/bin/new": "content that is in no other object\n"})
    newest = max(publisher.repository.glob("objects/*/*.filez"), key=lambda path: path.stat().st_mtime_ns)
    other = min(publisher.repository.glob("objects/*/*.filez"), key=lambda path: path.stat().st_mtime_ns)
    good = newest.read_bytes()
    newest.write_bytes(other.read_bytes())
    with pytest.raises(TrustError, match="corrupt"):
        run_cycle(device.updater(), Mode.BOTH)
    assert device.deployed() == [first]
    device.fsck()
    newest.write_bytes(good)
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.DEPLOYED
    device.fsck()


def test_a_missing_object_is_told_and_the_pull_goes_on_when_it_is_there(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    publisher.publish("1")
    device.install()
    publisher.publish("2", {f"usr/share/{number}": f"file {number}\n" for number in range(20)})
    lost = max(publisher.repository.glob("objects/*/*.filez"), key=lambda path: path.stat().st_mtime_ns)
    data = lost.read_bytes()
    lost.unlink()
    with pytest.raises(NetworkError, match="404"):
        run_cycle(device.updater(), Mode.BOTH)
    kept = {path.name.partition(".")[0] for path in device.repository.glob("tmp/overhaul-staging-*/*")}
    lost.write_bytes(data)
    server.requests.clear()
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.DEPLOYED
    again = {seen.path.removeprefix("objects/").replace("/", "").partition(".")[0] for seen in server.requests}
    assert kept
    assert not kept & again
    device.fsck()


def test_an_older_commit_is_refused_unless_the_owner_allows_it(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1", timestamp=2000)
    device.install()
    old = publisher.publish("0", timestamp=1000)
    with pytest.raises(TrustError, match="older"):
        run_cycle(device.updater(), Mode.BOTH)
    assert run_cycle(device.updater(allows_downgrade=True), Mode.BOTH).commit == old


def test_a_commit_of_another_branch_is_refused(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    other = ostree(
        "commit", f"--repo={publisher.repository}", "--branch=other", "--no-xattrs", publisher.directory / "tree"
    ).strip()
    (publisher.repository / "refs/heads" / BRANCH).write_text(other + "\n")
    publisher.renew_summary()
    with pytest.raises(TrustError, match="other"):
        run_cycle(device.updater(), Mode.BOTH)


def test_a_branch_that_is_not_there_is_told(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    ostree("refs", f"--repo={publisher.repository}", "--delete", BRANCH)
    publisher.renew_summary()
    with pytest.raises(NetworkError, match="no branch"):
        run_cycle(device.updater(), Mode.BOTH)


def test_a_full_disk_is_told_before_anything_is_deployed(publisher: Publisher, device: OstreeDevice) -> None:
    first = publisher.publish("1")
    device.install()
    publisher.publish("2")
    deploy = msgspec.structs.replace(device.settings.deploy, reserve_bytes=1 << 60)
    device.settings = msgspec.structs.replace(device.settings, deploy=deploy)
    with pytest.raises(DeviceError, match="free"):
        run_cycle(device.updater(), Mode.BOTH)
    assert device.deployed() == [first]
    device.fsck()


def test_while_ostree_works_on_the_device_we_keep_away(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    publisher.publish("2")
    run_cycle(device.updater(), Mode.FETCH_ONLY)
    with (
        record_locked(device.sysroot / "ostree/lock", purpose="A test", wait_s=0),
        pytest.raises(RepositoryBusyError),
    ):
        run_cycle(device.updater(), Mode.BOTH)
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.DEPLOYED


def test_fetching_and_applying_can_be_done_apart(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    first = publisher.publish("1")
    device.install()
    second = publisher.publish("2")
    assert run_cycle(device.updater(), Mode.APPLY_ONLY).result is Result.UP_TO_DATE
    assert run_cycle(device.updater(), Mode.FETCH_ONLY).result is Result.FETCHED
    assert device.deployed() == [first]
    server.requests.clear()
    assert run_cycle(device.updater(), Mode.APPLY_ONLY).commit == second
    assert server.requests == []


def test_the_owners_configuration_is_merged_as_the_real_ostree_merges_it(publisher: Publisher, place: Path) -> None:
    defaults = {
        "usr/etc/edited": "old\n", "usr/etc/deleted": "old\n", "usr/etc/both": "old\n", "usr/etc/gone": "old\n",
        "usr/etc/gone-edited": "old\n", "usr/etc/d/untouched": "old\n", "usr/etc/d/mode": "old\n",
        "usr/etc/to-link": "old\n",
    }  # fmt: skip
    changed = {
        **defaults, "usr/etc/both": "new\n", "usr/etc/gone": None, "usr/etc/gone-edited": None,
        "usr/etc/d/untouched": "new\n", "usr/etc/d/added": "new\n", "usr/etc/to-link": "-> both",
    }  # fmt: skip
    publisher.publish("1", defaults)
    trees = []
    with serving(publisher.repository) as running:
        devices = [OstreeDevice.make(place / name, running.url) for name in ("ours", "theirs")]
        for device in devices:
            device.install()
            device.booted = ""
            etc = device.etc()
            for name in ("edited", "both", "gone-edited"):
                (etc / name).write_text("mine\n")
            (etc / "deleted").unlink()
            (etc / "d/mode").chmod(0o600)
            (etc / "mine").mkdir()
            (etc / "mine/file").write_text("mine\n")
            (etc / "mine/link").symlink_to("file")
        publisher.publish("2", changed)
        outcome = run_cycle(devices[0].updater(), Mode.BOTH)
        ostree("admin", "upgrade", f"--sysroot={devices[1].sysroot}", f"--os={OSNAME}")
    for device in devices:
        etc = device.etc()
        found = {}
        for path in sorted(etc.rglob("*")):
            kept = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
            found[str(path.relative_to(etc))] = (path.lstat().st_mode, kept)
        trees.append(found)
    assert trees[0] == trees[1]
    assert [conflict.path for conflict in outcome.merge.conflicts] == ["both", "gone-edited"]


def test_an_update_that_does_not_stay_up_is_left_and_never_taken_again(
    publisher: Publisher, device: OstreeDevice
) -> None:
    first = publisher.publish("1")
    old = device.install()
    second = publisher.publish("2")
    device.restarter = NotedRestarts()
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.RESTARTING
    # The device was started and the old deployment runs: the boot loader fell back.
    device.boot_id = "another"
    assert device.booted == old.name
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.REFUSED
    assert device.deployed() == [first, second]
    third = publisher.publish("3")
    assert run_cycle(device.updater(), Mode.BOTH).commit == third


def test_an_update_that_is_not_healthy_goes_back_by_itself(publisher: Publisher, device: OstreeDevice) -> None:
    first = publisher.publish("1")
    device.install()
    second = publisher.publish("2")
    run_cycle(device.updater(), Mode.BOTH)
    device.boot()
    device.write_hook("post-update-check", "10-sick", "echo the radio is silent; exit 1")
    device.restarter = NotedRestarts()
    with pytest.raises(DeviceError, match="the radio is silent"):
        confirm(device.updater())
    assert device.deployed() == [first, second]
    assert device.restarter.asked == [True]
    device.boot()
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.REFUSED


def test_a_healthy_update_is_confirmed_and_stays(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    second = publisher.publish("2")
    run_cycle(device.updater(), Mode.BOTH)
    device.boot()
    outcome = confirm(device.updater())
    assert (outcome.result, outcome.commit) == (Result.CONFIRMED, second)
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.UP_TO_DATE


def test_a_failed_hook_keeps_the_deployment_and_is_tried_again(publisher: Publisher, device: OstreeDevice) -> None:
    first = publisher.publish("1")
    device.install()
    second = publisher.publish("2")
    seen = device.directory / "seen"
    hook = device.write_hook("post-apply", "00-app", "exit 3")
    after = device.write_hook("post-apply", "50-after", f'echo "$1 $2" >> {seen}')
    for _attempt in range(2):
        with pytest.raises(DeviceError, match=r"00-app.*exit code 3"):
            run_cycle(device.updater(), Mode.BOTH)
        assert device.deployed() == [second, first]
        assert not seen.exists()
    assert after.exists()
    hook.write_text("#!/bin/sh\n")
    run_cycle(device.updater(), Mode.BOTH)
    old, new = seen.read_text().split()
    assert Path(old).name.startswith(first)
    assert Path(new).name == f"{second}.0"


def test_pinned_deployments_and_other_systems_stay(publisher: Publisher, device: OstreeDevice) -> None:
    first = publisher.publish("1")
    device.install()
    ostree("admin", "pin", f"--sysroot={device.sysroot}", "0")
    second = publisher.publish("2")
    run_cycle(device.updater(), Mode.BOTH)
    device.boot()
    third = publisher.publish("3")
    run_cycle(device.updater(), Mode.BOTH)
    assert device.deployed() == [third, second, first]
    device.fsck()


def test_a_remote_without_a_known_url_is_told(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    ostree("remote", f"--repo={device.repository}", "delete", REMOTE)
    with pytest.raises(DeviceError, match="does not know it"):
        run_cycle(device.updater(), Mode.BOTH)


def test_plain_http_is_refused_unless_the_owner_allows_it(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    updater = device.updater()
    strict = msgspec.structs.replace(updater.settings, network=NetworkSettings(allow_http=False))
    from overhaul.dialects.ostree.device.wiring import Choices, open_updater

    choices = Choices(sysroot=device.sysroot, root=device.directory / "root")
    with pytest.raises(TrustError, match="https"):
        run_cycle(open_updater(strict, choices, running=device.open().running), Mode.BOTH)
