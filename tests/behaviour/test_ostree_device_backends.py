"""Both back ends of the updater keep the same promises on a system root that the real `ostree` made."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.loopback import LoopbackServer, serving
from tests.ostree_scene import (
    OSNAME,
    REMOTE,
    NotedRestarts,
    OstreeDevice,
    Publisher,
    ostree,
    quiet_directory,
)

from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.bootswap import clean_up
from overhaul.dialects.ostree.device.etcmerge import MergePlan
from overhaul.dialects.ostree.device.sysroot import Running
from overhaul.dialects.ostree.device.updating import Mode, Result, Updater, roll_back, run_cycle
from overhaul.dialects.ostree.device.wiring import Choices, open_updater
from overhaul.errors import DeviceError, OverhaulError, TrustError


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


@pytest.fixture(params=["own", "ostree"])
def device(request: pytest.FixtureRequest, place: Path, server: LoopbackServer) -> OstreeDevice:
    device = OstreeDevice.make(place / "device", server.url)
    deploy = msgspec.structs.replace(device.settings.deploy, backend=request.param)
    device.settings = msgspec.structs.replace(device.settings, deploy=deploy)
    return device


def offline(device: OstreeDevice) -> Updater:
    """Return the updater of a system root that does not run: the program looks for what runs by itself."""
    device.booted = ""
    return device.updater()


def test_an_update_is_deployed_first_and_the_old_one_is_kept(publisher: Publisher, device: OstreeDevice) -> None:
    first = publisher.publish("1")
    device.install()
    second = publisher.publish("2", {"usr/bin/new": "new\n"})
    updater = offline(device)
    assert updater.backend.name == device.settings.deploy.backend
    assert run_cycle(updater, Mode.BOTH).commit == second
    assert device.deployed() == [second, first]
    (new, _old) = device.open().deployments()
    assert new.origin is not None
    assert new.origin.refspec == f"{REMOTE}:example/x86_64/standard"
    assert new.entry.own_arguments == ("root=LABEL=root", "quiet")
    assert (device.open().directory(new) / "usr/bin/new").read_text() == "new\n"
    device.fsck()


def test_what_is_deployed_already_is_not_deployed_again(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    publisher.publish("2")
    run_cycle(offline(device), Mode.BOTH)
    names = [one.name for one in device.open().deployments()]
    assert run_cycle(offline(device), Mode.BOTH).result is Result.UP_TO_DATE
    assert [one.name for one in device.open().deployments()] == names


def test_the_owners_changes_of_etc_are_kept_and_shown_before(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    (device.etc() / "motd").write_text("mine\n")
    (device.etc() / "mine").write_text("mine\n")
    publisher.publish("2", {"usr/etc/motd": "welcome to 2\n", "usr/etc/new": "new\n"})
    device.booted = ""
    shown: list[MergePlan] = []
    outcome = run_cycle(device.updater(show_merge=shown.append), Mode.BOTH)
    assert shown == [outcome.merge]
    assert [(one.path, one.blocks) for one in outcome.merge.conflicts] == [("motd", False)]
    assert [one.path for one in outcome.merge.changes] == ["mine", "motd"]
    texts = {name: (device.etc() / name).read_text() for name in ("motd", "mine", "new")}
    assert texts == {"motd": "mine\n", "mine": "mine\n", "new": "new\n"}


def test_a_file_where_the_new_default_is_a_directory_stops_before_anything_is_changed(
    publisher: Publisher, device: OstreeDevice
) -> None:
    first = publisher.publish("1")
    device.install()
    (device.etc() / "place").write_text("a file\n")
    publisher.publish("2", {"usr/etc/place/inside": "a directory\n"})
    with pytest.raises(DeviceError, match="/etc/place"):
        run_cycle(offline(device), Mode.BOTH)
    assert device.deployed() == [first]
    device.fsck()


def test_an_owner_may_have_conflicts_stop_the_update(publisher: Publisher, device: OstreeDevice) -> None:
    first = publisher.publish("1")
    device.install()
    (device.etc() / "motd").write_text("mine\n")
    publisher.publish("2", {"usr/etc/motd": "welcome to 2\n"})
    deploy = msgspec.structs.replace(device.settings.deploy, conflicts="stop")
    device.settings = msgspec.structs.replace(device.settings, deploy=deploy)
    with pytest.raises(DeviceError, match="/etc/motd"):
        run_cycle(offline(device), Mode.BOTH)
    assert device.deployed() == [first]


def test_an_older_commit_is_refused(publisher: Publisher, device: OstreeDevice) -> None:
    first = publisher.publish("1", timestamp=2000)
    device.install()
    publisher.publish("0", timestamp=1000)
    with pytest.raises(TrustError, match="older"):
        run_cycle(offline(device), Mode.BOTH)
    assert device.deployed() == [first]


def test_rolling_back_makes_the_old_one_boot_and_refuses_what_was_left(
    publisher: Publisher, device: OstreeDevice
) -> None:
    first = publisher.publish("1")
    device.install()
    second = publisher.publish("2")
    run_cycle(offline(device), Mode.BOTH)
    assert roll_back(offline(device)).result is Result.ROLLED_BACK
    assert device.deployed() == [first, second]
    assert run_cycle(offline(device), Mode.BOTH).result is Result.REFUSED
    with pytest.raises(DeviceError, match="no other deployment"):
        roll_back(offline(device))
    third = publisher.publish("3")
    assert run_cycle(offline(device), Mode.BOTH).commit == third
    assert device.deployed() == [third, first]
    device.fsck()


def test_objects_that_no_deployment_needs_are_removed(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1", {"usr/lib/only-in-1": "only in 1\n"})
    device.install()
    for version in ("2", "3"):
        publisher.publish(version)
        run_cycle(offline(device), Mode.BOTH)
    texts = [path.read_text() for path in device.repository.glob("objects/*/*.file") if not path.is_symlink()]
    assert "only in 1\n" not in texts
    assert len(list((device.sysroot / f"ostree/deploy/{OSNAME}/deploy").glob("*.0"))) == 2


def test_a_broken_network_is_told_and_the_next_run_goes_on(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    publisher.publish("1")
    device.install()
    second = publisher.publish("2")
    lost = max(publisher.repository.glob("objects/*/*.filez"), key=lambda path: path.stat().st_mtime_ns)
    data = lost.read_bytes()
    lost.unlink()
    with pytest.raises(OverhaulError) as caught:
        run_cycle(offline(device), Mode.BOTH)
    assert caught.value.exit_code == 5
    lost.write_bytes(data)
    assert run_cycle(offline(device), Mode.BOTH).commit == second
    device.fsck()


def test_a_running_device_restarts_into_what_was_deployed(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    device.install()
    publisher.publish("2")
    device.restarter = NotedRestarts()
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.RESTARTING
    # Asked again before it happened: nothing is fetched or deployed twice.
    names = [one.name for one in device.open().deployments()]
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.RESTARTING
    assert [one.name for one in device.open().deployments()] == names
    assert device.restarter.asked == [False, False]


def polled(server: LoopbackServer, device: OstreeDevice) -> tuple[Result, list[str]]:
    before = len(server.requests)
    result = run_cycle(offline(device), Mode.BOTH).result
    return result, [seen.path for seen in server.requests[before:]]


def test_a_poll_that_finds_nothing_new_asks_for_nothing_but_whether_the_summary_changed(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    publisher.publish("1")
    device.install()
    assert polled(server, device)[0] is Result.UP_TO_DATE
    assert polled(server, device) == (Result.UP_TO_DATE, ["summary"])
    assert server.requests[-1].headers["if-none-match"]
    second = publisher.publish("2")
    assert polled(server, device)[0] is Result.DEPLOYED
    assert device.deployed()[0] == second
    assert polled(server, device) == (Result.UP_TO_DATE, ["summary"])


def test_a_commit_that_is_refused_costs_no_more_than_one_that_is_deployed(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    first = publisher.publish("1")
    device.install()
    publisher.publish("2")
    polled(server, device)
    roll_back(offline(device))
    assert polled(server, device) == (Result.REFUSED, ["summary"])
    before = server.body_bytes
    assert polled(server, device) == (Result.REFUSED, ["summary"])
    assert server.requests[-1].headers["if-none-match"]
    assert server.body_bytes == before
    third = publisher.publish("3")
    assert polled(server, device)[0] is Result.DEPLOYED
    assert device.deployed() == [third, first]


def test_a_commit_that_is_not_refused_any_more_is_fetched_although_the_summary_is_as_before(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    publisher.publish("1")
    device.install()
    second = publisher.publish("2")
    polled(server, device)
    roll_back(offline(device))
    polled(server, device)
    states = device.updater().states
    states.save(msgspec.structs.replace(states.load(), refused=()))
    ostree("admin", "undeploy", f"--sysroot={device.sysroot}", "1")
    ostree("refs", f"--repo={device.repository}", "--delete", REMOTE)
    assert polled(server, device)[0] is Result.DEPLOYED
    assert device.deployed()[0] == second


def test_a_server_is_believed_for_a_day_that_the_summary_is_as_before(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    """A server that tells files apart by size and time may be wrong for as long as nothing else is published."""
    publisher.publish("1")
    device.install()
    polled(server, device)
    second = publisher.publish("2")
    states = device.updater().states
    held = states.load()
    assert held.seen is not None
    state = (publisher.repository / "summary").stat()
    wrong = msgspec.structs.replace(held.seen, etag=f'"{state.st_size:x}-{state.st_mtime_ns:x}"')
    states.save(msgspec.structs.replace(held, seen=wrong))
    device.now += 86_399
    assert polled(server, device) == (Result.UP_TO_DATE, ["summary"])
    device.now += 1
    assert polled(server, device)[0] is Result.DEPLOYED
    assert device.deployed()[0] == second


def test_a_summary_seen_under_other_demands_is_asked_for_again(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    publisher.publish("1")
    device.install()
    polled(server, device)
    config = device.repository / "config"
    config.write_text(config.read_text().replace("gpg-verify=false", "gpg-verify=true"))
    with pytest.raises(TrustError, match="signatures"):
        run_cycle(offline(device), Mode.BOTH)


def test_a_server_that_is_back_at_the_summary_seen_before_does_not_bring_an_older_commit(
    publisher: Publisher, server: LoopbackServer, device: OstreeDevice
) -> None:
    first = publisher.publish("1", timestamp=2000)
    device.install()
    polled(server, device)
    summary = publisher.repository / "summary"
    seen = summary.read_bytes()
    newer = publisher.publish("2", timestamp=3000)
    device.install()
    assert device.deployed() == [newer, first]
    summary.write_bytes(seen)
    with pytest.raises(TrustError, match="older"):
        run_cycle(offline(device), Mode.BOTH)
    assert device.deployed() == [newer, first]


def test_a_device_whose_boot_files_have_a_partition_of_their_own_is_updated(
    publisher: Publisher, device: OstreeDevice
) -> None:
    first = publisher.publish("1")
    device.install()
    # As a device sees itself: / is the deployment, /boot the partition, and the directory below /sysroot is empty.
    root = device.directory / "root"
    device.sysroot.rename(device.directory / "physical")
    root.mkdir()
    (device.directory / "physical/boot").rename(root / "boot")
    (device.directory / "physical/boot").mkdir()
    (device.directory / "physical").rename(root / "sysroot")
    (root / "ostree").symlink_to("sysroot/ostree")
    device.sysroot.symlink_to("root/sysroot")
    second = publisher.publish("2", {"usr/lib/modules/6.1/vmlinuz": "another kernel\n"})
    choices = Choices(sysroot=root / "sysroot", root=root)
    settings = device.updater_settings()
    running = Running(root=None, boot_id="first")
    updater = open_updater(settings, choices, running=running, sleep=lambda _seconds: None)
    assert run_cycle(updater, Mode.BOTH).commit == second
    assert [one.commit for one in updater.sysroot.deployments()] == [second, first]
    assert not list((root / "sysroot/boot").iterdir())
    for one in updater.sysroot.deployments():
        assert (root / "boot" / one.entry.linux.lstrip("/")).is_file()
    assert roll_back(updater).result is Result.ROLLED_BACK
    assert [one.commit for one in updater.sysroot.deployments()] == [first, second]


def test_an_empty_list_of_what_boots_removes_nothing(publisher: Publisher, device: OstreeDevice) -> None:
    publisher.publish("1")
    deployment = device.install()
    boot = device.sysroot / "boot"
    boot.rename(device.directory / "not mounted")
    boot.mkdir()
    sysroot = device.open()
    assert sysroot.deployments() == ()
    clean_up(sysroot, BareRepository(device.repository))
    assert (sysroot.deployments_directory(OSNAME) / deployment.name / "usr").is_dir()
