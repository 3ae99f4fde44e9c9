"""The service's pauses, the configuration, hooks and the lists for scripts."""

import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from overhaul.dialects.ostree.device.crew import Crew
from overhaul.dialects.ostree.device.hooks import HookFailedError, hooks_in, run_hooks
from overhaul.dialects.ostree.device.listing import Entry, PrefixError, as_assignments, as_lines
from overhaul.dialects.ostree.device.service import serve
from overhaul.dialects.ostree.device.settings import UpdateSettings, load_settings
from overhaul.dialects.ostree.device.updating import Outcome, Result
from overhaul.errors import NetworkError, OverhaulError
from overhaul.install.health import Answer
from overhaul.install.settings import SettingsError
from overhaul.transfer.fetcher import Fetcher

UP_TO_DATE = Outcome(result=Result.UP_TO_DATE)


class Pauses(threading.Event):
    """Notes pauses instead of making them, and is set after `count`."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.lasted: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.lasted.append(timeout)
        if len(self.lasted) == self.count:
            self.set()
        return self.is_set()


def served(steps: Sequence[Outcome | OverhaulError], *, spread: float = 0.0) -> tuple[list[float], Outcome | None, int]:
    pauses = Pauses(len(steps))
    told: list[object] = []
    coming = iter(steps)

    def cycle() -> Outcome:
        step = next(coming)
        if isinstance(step, OverhaulError):
            raise step
        return step

    last = serve(cycle, interval_s=900, stopped=pauses, told=told.append, spread=lambda: spread)
    return pauses.lasted, last, len(told)


def test_after_a_good_cycle_the_interval_passes() -> None:
    assert served([UP_TO_DATE] * 3) == ([900, 900, 900], None, 3)


def test_failures_are_tried_again_after_pauses_that_double_up_to_the_interval() -> None:
    pauses, _last, told = served([NetworkError("no")] * 8 + [UP_TO_DATE] + [NetworkError("no")])
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900, 900, 30]
    assert told == 10


def test_chance_spreads_the_pauses() -> None:
    assert served([UP_TO_DATE], spread=1.0)[0] == [1125]


@pytest.mark.parametrize("result", [Result.RESTARTING, Result.DEPLOYED, Result.ROLLED_BACK])
def test_what_waits_for_a_restart_ends_the_service(result: Result) -> None:
    pauses, last, _told = served([UP_TO_DATE, Outcome(result=result), UP_TO_DATE])
    assert pauses == [900]
    assert last is not None
    assert last.result is result


def test_a_restart_that_is_held_back_is_asked_for_again_soon() -> None:
    assert served([Outcome(result=Result.RESTART_HELD), UP_TO_DATE])[0] == [30, 900]


def test_a_stopped_service_begins_nothing() -> None:
    stopped = threading.Event()
    stopped.set()
    assert serve(lambda: pytest.fail("it began"), interval_s=1, stopped=stopped, told=lambda _what: None) is None


def test_without_a_configuration_the_defaults_hold(tmp_path: Path) -> None:
    assert load_settings(tmp_path / "absent.toml", must_exist=False) == UpdateSettings()
    with pytest.raises(SettingsError, match="not there"):
        load_settings(tmp_path / "absent.toml", must_exist=True)


@pytest.mark.parametrize(
    "text", ["check_intervall_s = 3", "[reboot]\nwindow = 'noon'", "[network]\nconnections = 0", "= 1", "\x00"]
)
def test_a_configuration_without_sense_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "u.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"u\.toml"):
        load_settings(path, must_exist=True)


def test_a_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "u.toml"
    path.write_text("[deploy]\nbackend = 'ostree'\nboot_attempts = 3\n[reboot]\nwindow = '02:00-05:00'\n")
    settings = load_settings(path, must_exist=True)
    assert (settings.deploy.backend, settings.deploy.boot_attempts, str(settings.window)) == (
        "ostree",
        3,
        "02:00-05:00",
    )


def test_hooks_run_in_the_order_of_their_names_and_only_when_executable(tmp_path: Path) -> None:
    for name, mode in (("20-b", 0o755), ("10-a", 0o755), ("15-note", 0o644)):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(mode)
    (tmp_path / "05-directory").mkdir()
    assert [path.name for path in hooks_in(tmp_path)] == ["10-a", "20-b"]
    assert hooks_in(tmp_path / "absent") == []


@pytest.mark.parametrize(("code", "said"), [(3, "exit code 3"), (None, "not done after 60 s")])
def test_the_first_hook_that_fails_stops_the_others(code: int | None, said: str) -> None:
    began: list[str] = []

    def run(command: object, *, timeout_s: float) -> Answer:
        began.append(str(command))
        return Answer(exit_code=code, output="why")

    with pytest.raises(HookFailedError, match=rf"10-a.*{said}, why"):
        run_hooks([Path("/h/10-a"), Path("/h/20-b")], ["old", "new"], run=run, timeout_s=60)
    assert began == ["('/h/10-a', 'old', 'new')"]


def entry(number: int, options: str, *, is_booted: bool) -> Entry:
    return Entry(
        number=number,
        version=2 - number,
        options=options,
        link="/l",
        path=f"/ostree/deploy/{number}",
        device=255,
        inode=7 + number,
        is_booted=is_booted,
    )


ENTRIES = [entry(0, "a 'b'", is_booted=False), entry(1, "$(rm)", is_booted=True)]
SHOWN = ["BOOT_ENTRIES", "RUNNING_ENTRY", "LATEST_ENTRY", "BOOT0_OPTIONS", "BOOT1_OPTIONS", "BOOTED_INODE"]


def test_a_shell_reads_the_assignments_as_they_are_meant() -> None:
    lines = as_assignments(ENTRIES, shown=ENTRIES, prefix="P", exports=True)
    variables = " ".join(f'"$P_{name}"' for name in [*SHOWN, "LATEST_PATH"])
    script = "\n".join([*lines, f'printf "%s|" {variables}'])
    told = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert told == "2|1|0|a 'b'|$(rm)|8|/ostree/deploy/0|"


def test_a_prefix_that_no_variable_can_have_is_refused() -> None:
    with pytest.raises(PrefixError):
        as_assignments(ENTRIES, shown=ENTRIES, prefix="x; rm", exports=False)


def test_people_see_which_entry_runs_and_which_is_next() -> None:
    lines = as_lines(ENTRIES)
    assert "boot entry 0 (latest):" in lines
    assert "boot entry 1 (running):" in lines


class Nowhere:
    """A fetcher that is not used."""

    def fetch(self, request: object) -> object:
        raise AssertionError


def open_nowhere() -> Fetcher:
    return Nowhere()  # type: ignore[return-value]


def test_a_crew_carries_out_everything_it_is_given() -> None:
    def double(_fetcher: Fetcher, number: int) -> int:
        return number * 2

    with Crew(double, open_fetcher=open_nowhere, threads=3) as crew:
        for number in range(20):
            crew.give(number)
        assert sorted(crew.take() for _number in range(20)) == [(number, number * 2) for number in range(20)]
    assert crew.under_way == 0


def test_a_crew_hands_on_what_failed_and_begins_nothing_after_it() -> None:
    began: list[int] = []

    def work(_fetcher: Fetcher, number: int) -> int:
        began.append(number)
        raise NetworkError(f"broke at {number}")

    def carry_out() -> None:
        with Crew(work, open_fetcher=open_nowhere, threads=1) as crew:
            crew.give(0)
            crew.take()

    with pytest.raises(NetworkError, match="broke at 0"):
        carry_out()
    assert began == [0]
