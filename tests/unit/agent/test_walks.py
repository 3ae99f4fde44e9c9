"""The walks of a device through update, restart, confirmation and roll back, on a virtual device in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.devices import Bench, MemoryCost, release_id

from overhaul.agent.checking import ForeignRecordError, check
from overhaul.agent.confirming import UnverifiedSlotError, confirm
from overhaul.agent.going_back import NowhereToGoBackError, roll_back
from overhaul.agent.looking import history, status
from overhaul.agent.outcomes import Checked, ExitCode, Ready, Restart, Updated
from overhaul.agent.updating import NotEnoughMemoryError, NotEnoughSpaceError, UnconfirmedSlotError, update
from overhaul.host.locks import LockedError, locked
from overhaul.install.boot import SlotStatus
from overhaul.install.health import Answer, UnhealthyError
from overhaul.install.slots import SlotTooSmallError
from overhaul.install.state import EventKind, Phase
from overhaul.policy.document import Floor
from overhaul.policy.selection import Cause, Hold, Offer, UpToDate
from overhaul.progress import Silence
from overhaul.transfer.fetcher import UnreachableError

SICK = Answer(exit_code=1, output="the service is missing")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.repository.publish("1.0")
    made.boot.simulate_boot()
    return made


def updated_to(bench: Bench, version: str) -> Updated:
    bench.repository.publish(version)
    outcome = update(bench.device, progress=Silence())
    assert isinstance(outcome, Updated)
    return outcome


def test_a_check_offers_what_is_newer_and_changes_no_slot(bench: Bench) -> None:
    bench.repository.publish("2.0")
    before = [bench.slot(name).read_bytes() for name in "AB"]
    answer = check(bench.device)
    assert isinstance(answer.decision, Offer)
    assert answer.decision.entry.version == "2.0"
    assert answer.exit_code is ExitCode.DONE
    assert [bench.slot(name).read_bytes() for name in "AB"] == before
    assert bench.boot.state("B").status is SlotStatus.BAD
    assert bench.states.load().phase is Phase.IDLE


def test_a_check_with_nothing_newer_says_so_by_its_exit_code(bench: Bench) -> None:
    answer = check(bench.device)
    assert isinstance(answer.decision, UpToDate)
    assert answer.exit_code is ExitCode.NOTHING_TO_DO


def test_an_update_fills_the_idle_slot_and_boots_it_on_trial(bench: Bench) -> None:
    outcome = updated_to(bench, "2.0")
    assert (outcome.from_release, outcome.to_release) == (release_id("1.0"), release_id("2.0"))
    assert outcome.slot == "B"
    assert outcome.reused_bytes == 7
    assert outcome.restart.restart is Restart.REQUESTED
    assert (bench.holds("A"), bench.holds("B")) == ("1.0", "2.0")
    assert bench.boot.state("B").status is SlotStatus.TRIAL
    assert bench.states.load().phase is Phase.AWAITING_REBOOT
    assert bench.boot.simulate_boot() == "B"


def test_the_idle_slot_is_bad_before_its_first_byte_and_the_state_says_installing(bench: Bench) -> None:
    seen: list[tuple[SlotStatus, Phase]] = []
    bench.content.before_first_byte = lambda: seen.append((bench.boot.state("B").status, bench.states.load().phase))
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    confirm(bench.device)
    bench.content.before_first_byte = lambda: seen.append((bench.boot.state("A").status, bench.states.load().phase))
    updated_to(bench, "3.0")
    assert seen == [(SlotStatus.BAD, Phase.INSTALLING)] * 2


def test_a_healthy_trial_is_confirmed_and_both_slots_stay_bootable(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    outcome = confirm(bench.device)
    assert outcome.slot == "B"
    assert [result.passed for result in outcome.checks] == [True]
    assert bench.boot.state("A").status is bench.boot.state("B").status is SlotStatus.GOOD
    assert [bench.boot.simulate_boot() for _ in range(5)] == ["B"] * 5
    assert check(bench.device).exit_code is ExitCode.NOTHING_TO_DO
    assert check(bench.device).running == release_id("2.0")


def test_the_next_update_goes_the_other_way_with_the_new_slot_as_its_source(bench: Bench) -> None:
    first = updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    confirm(bench.device)
    second = updated_to(bench, "3.0")
    assert (first.slot, second.slot) == ("B", "A")
    sources = [source for source, _index in bench.content.sources]
    assert sources == [bench.slot("A"), bench.slot("B")]
    indexes = [index for _source, index in bench.content.sources]
    assert None not in indexes
    assert indexes[0] != indexes[1]


def test_a_slot_whose_release_is_not_published_is_a_source_without_an_index(bench: Bench) -> None:
    del bench.repository.targets[release_id("1.0").target_path]
    updated_to(bench, "2.0")
    assert bench.content.sources == [(bench.slot("A"), None)]


def test_a_sick_trial_rolls_back_and_its_version_is_never_offered_again(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    bench.health["healthy"] = SICK
    with pytest.raises(UnhealthyError, match="the service is missing") as caught:
        confirm(bench.device)
    assert caught.value.exit_code == 6
    assert bench.boot.state("B").status is SlotStatus.BAD
    assert bench.restarter.asked == [False, True]
    assert bench.boot.simulate_boot() == "A"
    answer = check(bench.device)
    assert isinstance(answer.decision, Hold)
    assert answer.exit_code is ExitCode.HELD
    assert answer.running == release_id("1.0")
    kinds = [event.kind for event in history(bench.device)]
    assert kinds == [EventKind.STARTED, EventKind.INSTALLED, EventKind.UNHEALTHY, EventKind.ROLLED_BACK]
    assert updated_to(bench, "3.0").slot == "B"


def test_a_trial_that_never_comes_up_is_remembered_when_the_old_slot_runs_again(bench: Bench) -> None:
    updated_to(bench, "2.0")
    assert [bench.boot.simulate_boot() for _ in range(4)] == ["B", "B", "B", "A"]
    assert isinstance(update(bench.device, progress=Silence()), Checked)
    state = bench.states.load()
    assert state.phase is Phase.IDLE
    assert [refused.version for refused in state.refused] == ["2.0"]
    assert state.history[-1].kind is EventKind.FELL_BACK


def test_a_boot_loader_that_ignores_the_trial_does_not_cause_restarts_for_ever(bench: Bench) -> None:
    updated_to(bench, "2.0")
    # Started again, but in the old slot and without counting: a person chose it in the menu.
    document = (bench.directory / "boot.json").read_text().replace('"boots": 1', '"boots": 2')
    (bench.directory / "boot.json").write_text(document)
    assert isinstance(update(bench.device, progress=Silence()), Checked)
    assert bench.restarter.asked == [False]
    assert bench.boot.primary() == "A"


def test_no_update_starts_on_a_slot_that_is_not_confirmed(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    bench.repository.publish("3.0")
    with pytest.raises(UnconfirmedSlotError, match="device confirm"):
        update(bench.device, progress=Silence())
    assert bench.holds("A") == "1.0"


def test_an_installed_update_is_not_installed_twice_but_asks_for_its_restart_again(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.repository.publish("3.0")
    outcome = update(bench.device, progress=Silence())
    assert isinstance(outcome, Ready)
    assert outcome.release == release_id("2.0")
    assert len(bench.content.sources) == 1
    assert bench.restarter.asked == [False, False]


def test_an_installed_update_waits_for_its_restart_without_network(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.repository.failure = UnreachableError(url="https://updates.test", reason="no route")
    assert isinstance(update(bench.device, progress=Silence()), Ready)


def test_an_update_recalled_before_its_restart_is_called_off(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.repository.publish("2.0", recall="it eats disks")
    assert isinstance(update(bench.device, progress=Silence()), Checked)
    assert bench.boot.simulate_boot() == "A"
    state = bench.states.load()
    assert state.history[-1].kind is EventKind.CANCELLED
    assert state.refused == ()


def test_a_minimum_version_once_told_stays_until_the_policy_key_is_replaced(bench: Bench) -> None:
    bench.repository.floors = (Floor(variant="lite", arch="amd64", minimum="2.0"),)
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    confirm(bench.device)
    bench.repository.floors = ()
    bench.repository.publish("2.0", recall="it eats disks", allow_lower=True)
    held = update(bench.device, progress=Silence())
    assert isinstance(held, Checked)
    assert isinstance(held.decision, Hold)
    assert Cause.BELOW_FLOOR in {reason.cause for reason in held.decision.reasons}
    assert bench.holds("A") == "1.0"

    bench.repository.keyids = ("new-policy-key",)
    back = check(bench.device)
    assert isinstance(back.decision, Offer)
    assert back.decision.goes_back


def test_an_update_that_broke_off_leaves_the_old_slot_and_goes_on_later(bench: Bench) -> None:
    bench.repository.publish("2.0")
    bench.content.failure = UnreachableError(url="https://updates.test", reason="reset")
    with pytest.raises(UnreachableError):
        update(bench.device, progress=Silence())
    assert bench.states.load().phase is Phase.INSTALLING
    assert bench.boot.simulate_boot() == "A"
    assert bench.holds("A") == "1.0"
    assert [report["outcome"] for report in bench.reporter.sent] == ["failed"]
    assert bench.reporter.sent[0]["error"] == "UnreachableError"
    bench.content.failure = None
    assert isinstance(update(bench.device, progress=Silence()), Updated)
    assert [event.kind for event in history(bench.device)] == [EventKind.STARTED, EventKind.INSTALLED]


def test_a_newer_release_takes_the_place_of_an_interrupted_one(bench: Bench) -> None:
    bench.repository.publish("2.0")
    bench.content.failure = UnreachableError(url="https://updates.test", reason="reset")
    with pytest.raises(UnreachableError):
        update(bench.device, progress=Silence())
    bench.content.failure = None
    assert updated_to(bench, "3.0").to_release == release_id("3.0")
    assert bench.holds("B") == "3.0"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda bench: setattr(bench, "free_memory", 999), NotEnoughMemoryError),
        (lambda bench: setattr(bench, "free_space", 999), NotEnoughSpaceError),
        (lambda bench: setattr(bench.content, "cost", MemoryCost(memory_bytes=2 << 30)), NotEnoughMemoryError),
        (lambda bench: bench.repository.publish("2.0", size=1 << 20), SlotTooSmallError),
    ],
)
def test_what_cannot_fit_is_refused_before_the_slot_is_touched(
    bench: Bench, change: Callable[[Bench], object], error: type[Exception]
) -> None:
    bench.repository.publish("2.0")
    change(bench)
    before = bench.slot("B").read_bytes()
    with pytest.raises(error):
        update(bench.device, progress=Silence())
    assert bench.slot("B").read_bytes() == before
    assert bench.states.load().phase is Phase.IDLE


def test_a_record_signed_under_another_name_is_refused(bench: Bench) -> None:
    bench.repository.publish("2.0")
    targets = bench.repository.targets
    targets[release_id("2.0").target_path] = targets[release_id("1.0").target_path]
    with pytest.raises(ForeignRecordError):
        update(bench.device, progress=Silence())
    assert bench.states.load().phase is Phase.IDLE


def test_two_agents_do_not_run_at_once(bench: Bench) -> None:
    bench.states.load()
    with locked(bench.device.lock_path, purpose="test"), pytest.raises(LockedError) as caught:
        update(bench.device, progress=Silence())
    assert caught.value.exit_code == 8


def test_a_restart_that_must_wait_fails_nothing(bench: Bench) -> None:
    bench.restarter.failure = LockedError(path=bench.directory, purpose="somebody")
    outcome = updated_to(bench, "2.0")
    assert outcome.restart.restart is Restart.POSTPONED
    assert "somebody" in outcome.restart.reason
    assert bench.states.load().phase is Phase.AWAITING_REBOOT


def test_confirming_twice_does_nothing_the_second_time(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    assert confirm(bench.device).exit_code is ExitCode.DONE
    assert confirm(bench.device).exit_code is ExitCode.NOTHING_TO_DO


def test_a_slot_that_was_given_up_cannot_be_confirmed(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    bench.health["healthy"] = SICK
    with pytest.raises(UnhealthyError):
        confirm(bench.device)
    bench.health.clear()
    with pytest.raises(UnverifiedSlotError, match="restart the device into slot A"):
        confirm(bench.device)
    assert bench.boot.state("B").status is SlotStatus.BAD


def test_a_device_that_boots_the_other_slot_first_confirms_it_when_healthy(bench: Bench) -> None:
    bench.boot.mark_bad("A")
    bench.boot.try_next("B", attempts=3)
    bench.boot.simulate_boot()
    with pytest.raises(UnconfirmedSlotError):
        update(bench.device, progress=Silence())
    confirm(bench.device)
    assert bench.boot.state("B").status is SlotStatus.GOOD


def test_rolling_back_by_hand_tries_the_old_slot_and_refuses_the_new_version(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    confirm(bench.device)
    outcome = roll_back(bench.device)
    assert (outcome.slot, outcome.to_release) == ("A", release_id("1.0"))
    assert bench.boot.simulate_boot() == "A"
    confirm(bench.device)
    assert bench.boot.state("A").status is bench.boot.state("B").status is SlotStatus.GOOD
    assert isinstance(check(bench.device).decision, Hold)
    assert isinstance(update(bench.device, progress=Silence()), Checked)


def test_a_roll_back_that_is_asked_for_twice_is_the_same_wish(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    confirm(bench.device)
    assert roll_back(bench.device) == roll_back(bench.device)
    assert {refused.version for refused in status(bench.device).refused} == {"2.0"}
    assert bench.boot.simulate_boot() == "A"


def test_going_back_to_a_slot_that_does_not_come_up_returns_to_the_one_that_ran(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    confirm(bench.device)
    roll_back(bench.device)
    assert [bench.boot.simulate_boot() for _ in range(4)] == ["A", "A", "A", "B"]
    seen = status(bench.device)
    assert (seen.running_slot, seen.phase) == ("B", Phase.IDLE)
    assert {refused.version for refused in seen.refused} == {"1.0", "2.0"}


def test_rolling_back_a_trial_gives_it_up(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    assert roll_back(bench.device).slot == "A"
    assert bench.boot.simulate_boot() == "A"
    assert status(bench.device).phase is Phase.IDLE


def test_rolling_back_before_the_restart_calls_the_update_off(bench: Bench) -> None:
    updated_to(bench, "2.0")
    outcome = roll_back(bench.device)
    assert outcome.to_release is None
    assert bench.boot.simulate_boot() == "A"
    assert isinstance(check(bench.device).decision, Hold)


def test_there_is_no_way_back_to_a_slot_without_a_system(bench: Bench) -> None:
    with pytest.raises(NowhereToGoBackError):
        roll_back(bench.device)
    bench.repository.publish("2.0")
    bench.content.failure = UnreachableError(url="https://updates.test", reason="reset")
    with pytest.raises(UnreachableError):
        update(bench.device, progress=Silence())
    with pytest.raises(NowhereToGoBackError):
        roll_back(bench.device)


def test_status_tells_slots_phase_and_refusals(bench: Bench) -> None:
    updated_to(bench, "2.0")
    seen = status(bench.device)
    assert (seen.running_slot, seen.next_slot, seen.phase) == ("A", "B", Phase.AWAITING_REBOOT)
    assert seen.slots["B"].attempts_left == 3
    assert seen.target is not None
    assert seen.target.release == release_id("2.0")


def test_reports_name_releases_and_never_the_device(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    confirm(bench.device)
    sent = bench.reporter.sent
    assert [report["outcome"] for report in sent] == ["installed", "confirmed"]
    assert all((report["from_version"], report["to_version"]) == ("1.0", "2.0") for report in sent)
    assert sent[0]["report_id"] != sent[1]["report_id"]
    assert bench.states.load().rollout_id not in str(sent)


def test_status_and_history_answer_while_an_update_runs(bench: Bench) -> None:
    seen: list[Phase] = []

    def look() -> None:
        seen.append(status(bench.device).phase)
        assert history(bench.device)[-1].kind is EventKind.STARTED

    bench.content.before_first_byte = look
    updated_to(bench, "2.0")
    assert seen == [Phase.INSTALLING]


def test_status_changes_nothing(bench: Bench) -> None:
    updated_to(bench, "2.0")
    bench.boot.simulate_boot()
    before = bench.states.path.read_bytes()
    assert status(bench.device).phase is Phase.TRIAL
    assert bench.states.path.read_bytes() == before
