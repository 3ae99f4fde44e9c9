"""What the server hears of one update, so that it misses a device that does not come back."""

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from tests.devices import Bench, release_id, settings_for

from overhaul.agent.confirming import confirm
from overhaul.agent.going_back import roll_back
from overhaul.agent.outcomes import Checked, Ready, Restart, Updated
from overhaul.agent.reporting import MAX_KEPT, HttpReporter, KeptReports
from overhaul.agent.updating import update
from overhaul.install.boot import SlotStatus
from overhaul.install.health import Answer, UnhealthyError
from overhaul.install.reboot import RestartInhibitedError
from overhaul.install.state import DeviceState, EventKind
from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.progress import Silence
from overhaul.server.reports import DeviceReport
from overhaul.transfer.fetcher import UnreachableError


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.settings = settings_for(tmp_path, more='[reboot]\npolicy = "logind"')
    made.repository.publish("1.0")
    made.boot.simulate_boot()
    return made


def _update(bench: Bench) -> Updated | Ready | Checked:
    return update(bench.device, progress=Silence())


def _told(bench: Bench) -> list[object]:
    for report in bench.reporter.sent:
        DeviceReport.model_validate(report)
    return [report["outcome"] for report in bench.reporter.sent]


def _update_ids(bench: Bench) -> set[object]:
    return {report.get("update_id") for report in bench.reporter.sent}


def test_all_reports_of_an_update_carry_its_id_and_the_next_update_has_another(bench: Bench) -> None:
    bench.repository.publish("2.0")
    _update(bench)
    bench.boot.simulate_boot()
    confirm(bench.device)

    assert _told(bench) == ["installed", "restarting", "confirmed"]
    (first,) = _update_ids(bench)
    bench.reporter.sent.clear()
    bench.repository.publish("3.0")
    _update(bench)
    (second,) = _update_ids(bench)
    assert None not in {first, second}
    assert first != second


def test_a_restart_is_announced_before_it_is_asked_for(bench: Bench) -> None:
    bench.repository.publish("2.0")
    heard: list[int] = []
    send = bench.reporter.send

    def note(report: Mapping[str, object]) -> None:
        if report["outcome"] == "restarting":
            heard.append(len(bench.restarter.asked))
        send(report)

    bench.reporter.send = note  # type: ignore[method-assign]  # the outermost edge
    _update(bench)

    assert heard == [0]
    assert bench.restarter.asked == [False]


def test_a_restart_that_does_not_happen_after_all_is_taken_back(bench: Bench) -> None:
    bench.repository.publish("2.0")
    bench.restarter.failure = RestartInhibitedError([])
    _update(bench)

    assert _told(bench) == ["installed", "restarting", "waiting"]


@pytest.mark.parametrize("more", ["", '[reboot]\npolicy = "logind"\nwindow = "02:00-02:01 UTC"'])
def test_a_device_that_may_not_restart_now_says_that_it_waits_each_time_it_looks(bench: Bench, more: str) -> None:
    bench.settings = settings_for(bench.directory, more=more)
    bench.restarter.failure = RestartInhibitedError([])
    bench.repository.publish("2.0")
    _update(bench)
    _update(bench)

    assert _told(bench) == ["installed", "waiting"]
    assert len(_update_ids(bench)) == 1


def test_a_boot_loader_that_went_back_is_reported_once(bench: Bench) -> None:
    bench.repository.publish("2.0")
    _update(bench)
    assert [bench.boot.simulate_boot() for _ in range(4)] == ["B", "B", "B", "A"]
    _update(bench)
    _update(bench)

    assert _told(bench) == ["installed", "restarting", "rolled-back", "checked", "checked"]
    assert bench.reporter.sent[2]["update_id"] == bench.reporter.sent[0]["update_id"]
    assert (bench.reporter.sent[2]["from_version"], bench.reporter.sent[2]["to_version"]) == ("1.0", "2.0")


def test_an_unhealthy_trial_and_one_given_up_by_hand_are_reported_as_rolled_back(bench: Bench) -> None:
    bench.repository.publish("2.0")
    _update(bench)
    bench.boot.simulate_boot()
    bench.health["healthy"] = Answer(exit_code=1, output="sick")
    with pytest.raises(UnhealthyError):
        confirm(bench.device)
    assert _told(bench) == ["installed", "restarting", "rolled-back"]
    bench.boot.simulate_boot()
    bench.health.clear()
    bench.reporter.sent.clear()

    bench.repository.publish("3.0")
    _update(bench)
    bench.boot.simulate_boot()
    roll_back(bench.device)
    assert _told(bench) == ["installed", "restarting", "rolled-back"]
    assert len(_update_ids(bench)) == 1


def test_an_update_called_off_by_hand_is_not_missed(bench: Bench) -> None:
    bench.restarter.failure = RestartInhibitedError([])
    bench.repository.publish("2.0")
    _update(bench)
    roll_back(bench.device)

    assert _told(bench)[-1] == "cancelled"
    assert len(_update_ids(bench)) == 1


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [
        (
            Rollout(percent=0, halted="5 devices did not come back"),
            "its rollout was halted: 5 devices did not come back",
        ),
        (Rollout(percent=0), "its rollout was paused"),
        (Rollout(percent=0.001), "its rollout is at 0.001 % now, without this device"),
        (
            Rollout(percent=0, steps=(RolloutStep(since=253_402_300_799, percent=100),)),
            "its rollout is at 0 % now, without this device",
        ),
    ],
    ids=["halted", "paused", "lowered", "opens later"],
)
def test_an_update_whose_rollout_is_shut_before_its_restart_never_runs_and_the_history_says_why(
    bench: Bench, rollout: Rollout, reason: str
) -> None:
    _install_and_shut(bench, rollout)

    assert isinstance(_update(bench), Checked)

    assert _told(bench)[-2:] == ["cancelled", "checked"]
    assert bench.boot.state("B").status is SlotStatus.BAD
    assert bench.boot.simulate_boot() == "A"
    state = bench.states.load()
    assert state.refused == ()
    assert [event.detail for event in state.history if event.kind is EventKind.CANCELLED] == [reason]


def _install_and_shut(bench: Bench, rollout: Rollout) -> None:
    # A device that is in no rollout of 0.001 %: its place for 2.0 is 6.75 %.
    bench.states.save(DeviceState(rollout_id="0" * 32))
    bench.restarter.failure = RestartInhibitedError([])
    bench.repository.publish("2.0")
    _update(bench)
    assert bench.boot.state("B").status is SlotStatus.TRIAL
    bench.repository.entries["2.0"] = msgspec.structs.replace(bench.repository.entries["2.0"], rollout=rollout)
    bench.repository.unread = True


def test_what_was_called_off_is_installed_when_the_rollout_goes_on(bench: Bench) -> None:
    _install_and_shut(bench, Rollout(percent=0))
    assert isinstance(_update(bench), Checked)
    bench.restarter.failure = None
    bench.repository.publish("2.0")

    assert isinstance(_update(bench), Updated)
    assert bench.boot.simulate_boot() == "B"


def test_an_installation_that_broke_off_and_went_on_is_one_update(bench: Bench) -> None:
    bench.repository.publish("2.0")
    bench.content.failure = UnreachableError(url="https://u.test", reason="cut")
    with pytest.raises(UnreachableError):
        _update(bench)
    bench.content.failure = None
    _update(bench)

    assert _told(bench) == ["failed", "installed", "restarting"]
    assert len(_update_ids(bench)) == 1


def test_going_back_by_hand_is_no_update(bench: Bench) -> None:
    bench.repository.publish("2.0")
    _update(bench)
    bench.boot.simulate_boot()
    confirm(bench.device)
    bench.reporter.sent.clear()
    answer = roll_back(bench.device)

    assert answer.restart is not None
    assert answer.restart.restart is Restart.REQUESTED
    assert _told(bench) == []


class _Network(HttpReporter):
    """Stands in for the network: delivers while it is up."""

    def __init__(self) -> None:
        super().__init__(url="https://reports.test")
        self.is_up = True
        self.taken: list[Mapping[str, object]] = []

    def deliver(self, report: Mapping[str, object]) -> bool:
        if self.is_up:
            self.taken.append(report)
        return self.is_up


def test_how_an_update_ended_is_told_when_the_network_is_back(tmp_path: Path) -> None:
    network, path = _Network(), tmp_path / "reports.json"
    network.is_up = False
    KeptReports(network, path).send({"report_id": "1", "outcome": "confirmed"})
    KeptReports(network, path).send({"report_id": "2", "outcome": "checked"})
    network.is_up = True
    KeptReports(network, path).send({"report_id": "3", "outcome": "checked"})

    assert [report["report_id"] for report in network.taken] == ["1", "3"]
    assert not path.exists()


def test_nothing_is_written_while_the_network_is_there(tmp_path: Path) -> None:
    KeptReports(_Network(), tmp_path / "reports.json").send({"report_id": "1", "outcome": "confirmed"})

    assert list(tmp_path.iterdir()) == []


def test_only_so_many_reports_are_kept_and_the_newest_stay(tmp_path: Path) -> None:
    network, path = _Network(), tmp_path / "reports.json"
    network.is_up = False
    for number in range(MAX_KEPT + 5):
        KeptReports(network, path).send({"report_id": str(number), "outcome": "rolled-back"})

    kept = json.loads(path.read_bytes())
    assert [report["report_id"] for report in kept] == [str(number) for number in range(5, MAX_KEPT + 5)]


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[1]", b'{"outcome": 1}', b"\xff" * 100])
def test_rubbish_in_the_place_of_kept_reports_is_passed_over(tmp_path: Path, rubbish: bytes) -> None:
    network, path = _Network(), tmp_path / "reports.json"
    path.write_bytes(rubbish)
    KeptReports(network, path).send({"report_id": "1", "outcome": "confirmed"})

    assert [report["report_id"] for report in network.taken] == ["1"]


def test_a_medium_that_takes_nothing_fails_nothing(tmp_path: Path) -> None:
    network = _Network()
    network.is_up = False
    (tmp_path / "reports.json").mkdir()
    KeptReports(network, tmp_path / "reports.json").send({"report_id": "1", "outcome": "confirmed"})


def test_the_release_that_ran_before_is_told_of_a_fall_back_from_a_factory_slot(bench: Bench) -> None:
    bench.repository.publish("2.0")
    _update(bench)
    for _attempt in range(4):
        bench.boot.simulate_boot()
    _update(bench)

    (fallen,) = [report for report in bench.reporter.sent if report["outcome"] == "rolled-back"]
    assert fallen["from_build_id"] == release_id("1.0").build_id
