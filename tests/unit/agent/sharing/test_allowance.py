"""The caps on what is given, with a clock that is told."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.agent.sharing.allowance import MAX_WAIT_S, Allowance, Turn


@dataclass
class Clock:
    """Time that passes when it is told to."""

    seconds: float = 1000.0
    day: datetime.datetime = field(default_factory=lambda: datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime.datetime:
        return self.day


def allowance(clock: Clock, file: Path, *, per_s: int = 1000, per_day: int = 10**12) -> Allowance:
    return Allowance(
        max_bytes_per_s=per_s, max_bytes_per_day=per_day, file=file, monotonic=clock.monotonic, now=clock.now
    )


@given(
    asked=st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 3)), min_size=1, max_size=60),
    per_s=st.integers(100, 100_000),
)
def test_whoever_asks_how_often_the_rate_is_never_exceeded(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, float]], per_s: int
) -> None:
    clock = Clock()
    account = allowance(clock, tmp_path_factory.getbasetemp() / "shared.json", per_s=per_s)
    sent: list[tuple[float, int]] = []
    for size, pause in asked:
        turn = account.reserve(size)
        assert turn is not None
        assert turn.is_booked == (0 <= turn.wait_s <= MAX_WAIT_S)
        if turn.is_booked:
            sent.append((clock.seconds + turn.wait_s, size))
        clock.seconds += pause

    for number, (begin, _size) in enumerate(sent):
        for later, (end, _last) in enumerate(sent[number + 1 :], start=number + 1):
            # What goes out from the begin of one answer to the begin of another took its time.
            assert sum(size for _at, size in sent[number:later]) <= (end - begin) * per_s * (1 + 1e-9) + 1e-6


def test_whoever_comes_when_the_turn_is_far_away_is_told_when_to_come_again(tmp_path: Path) -> None:
    clock = Clock()
    account = allowance(clock, tmp_path / "shared.json")

    assert account.reserve(1000) == Turn(0, is_booked=True)
    assert account.reserve(1500) == Turn(1, is_booked=True)
    assert account.reserve(1) == Turn(2.5, is_booked=False)
    clock.seconds += 0.5
    assert account.reserve(1) == Turn(2, is_booked=True)


def test_a_day_has_its_bytes_and_the_next_one_new_ones(tmp_path: Path) -> None:
    clock = Clock()
    account = allowance(clock, tmp_path / "shared.json", per_s=10**12, per_day=1000)

    assert account.reserve(900) is not None
    assert account.reserve(200) is None
    assert account.reserve(100) is not None
    clock.day += datetime.timedelta(days=1)
    assert account.reserve(1000) is not None


def test_a_restart_forgets_nothing_that_was_given(tmp_path: Path) -> None:
    clock = Clock()
    file = tmp_path / "shared.json"
    given = 0
    for _start in range(50):
        account = allowance(clock, file, per_s=10**12, per_day=10_000)
        if account.reserve(900) is not None:
            given += 900

    assert 0 < given <= 10_000


def test_a_damaged_account_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "shared.json"
    file.write_bytes(b"\0" * 20)

    assert allowance(Clock(), file).reserve(1) == Turn(0, is_booked=True)
