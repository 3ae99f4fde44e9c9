"""Lines of the journal become the progress lines that user interfaces read."""

import pytest

from overhaul.dialects.atomupd.device.completion import ProgressLine, completion_time, parse_line
from overhaul.dialects.atomupd.device.progress import JournalProgress, StepProgress


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("installing https://a.example/b c.raucb: started", "0%"),
        ("rauc-Message: 10:00:00.000: installing /b.raucb: started", "0%"),
        ("casync: seeding... 0.0%", "5%"),
        ("seeding... 50.0%", "16%"),
        ("seeding... 100%", "27%"),
        ("downloading chunks... 0%", "27%"),
        ("downloading chunks... 33.3%", "49%"),
        ("downloading chunks... 100.0%", "95%"),
        ("installing /b.raucb: All slots updated", "95%"),
        ("installing `/b.raucb` succeeded", "100%"),
        ("Attempt 1: Validating 35.55%", "1.78%"),
        ("Attempt 1: Chunking Seed 1 10.20%", "5.51%"),
        ("Attempt 1: Assembling 34.22% 01m02s", "37.51% 01m02s"),
        ("Attempt 2: Assembling 100.00% 01m30s", "100.00%"),
        ("Attempt 2: Validating 20%", "11.00%"),
        ("Attempt 999: Assembling 50% 1s", "100.00% 1s"),
        ("installing /b.raucb: Checking slot rootfs.1", None),
        ("installing /b.raucb: Verifying signature failed", None),
        ("installing `/b.raucb` failed: 1", None),
        ("* Connected to 127.0.0.1 port 80", None),
        ("seeding... lots%", None),
        ("", None),
    ],
)
def test_a_line_of_the_journal_stands_for_a_progress_line(line: str, told: str | None) -> None:
    assert JournalProgress().feed(line) == told


@pytest.mark.parametrize(
    ("line", "ended"),
    [
        ("installing `/b.raucb` succeeded", True),
        ("installing `/b.raucb` failed: 1", True),
        ("rauc-Message: 10:00:00.000: stopping service", True),
        ("Stopped RAUC Update Service.", True),
        ("rauc.service: Failed with result 'signal'.", True),
        ("installing /b.raucb: finished", False),
        ("installing /b.raucb: started", False),
    ],
)
def test_the_end_of_an_installation_is_seen(line: str, ended: bool) -> None:
    progress = JournalProgress()
    progress.feed(line)
    assert progress.ended is ended


def test_steps_of_our_own_become_whole_percents_that_never_fall() -> None:
    lines: list[str] = []
    progress = StepProgress(lines.append, {"one": (10.0, 20.0), "two": (20.0, 100.0)})
    for step, total in (("one", 4), ("unknown", 2), ("two", None)):
        progress.begin(step, total)
        progress.advance(1)
        progress.advance(1)
        progress.end()
    assert lines == ["10%", "12%", "15%", "20%", "100%"]


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("12%", ProgressLine(percent=12, left_s=None)),
        ("37.51% 01m02s\n", ProgressLine(percent=37.51, left_s=62)),
        ("1% 1d2h03m04s", ProgressLine(percent=1, left_s=93784)),
        ("1% soon", ProgressLine(percent=1, left_s=None)),
        ("999%", ProgressLine(percent=100, left_s=None)),
        ("WARNING: 12%", None),
        ("{}", None),
    ],
)
def test_a_progress_line_is_read(line: str, parsed: ProgressLine | None) -> None:
    assert parse_line(line) == parsed


@pytest.mark.parametrize(
    ("line", "now", "expected"),
    [
        ("50% 30s", 1010.0, 1040),
        ("50%", 1010.0, 1020),
        ("25%", 1010.0, 1040),
        ("1%", 1010.0, 0),
        ("50%", 1002.0, 0),
        ("100%", 1010.0, 1010),
    ],
)
def test_the_end_is_told_by_the_line_or_by_the_pace(line: str, now: float, expected: int) -> None:
    parsed = parse_line(line)
    assert parsed is not None
    assert completion_time(parsed, began=1000.0, now=now) == expected
