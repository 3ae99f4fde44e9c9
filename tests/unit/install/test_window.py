"""Maintenance windows: days, midnight, time zones, and the two nights on which clocks change."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.install.window import WindowError, parse_window

#: A Sunday without anything special.
SUNDAY = datetime(2026, 5, 3, tzinfo=UTC)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("02:00-05:00", ["02:00", "04:59"], ["01:59", "05:00", "14:00"]),
        ("22:30-04:00", ["22:30", "23:59", "00:00", "03:59"], ["04:00", "12:00", "22:29"]),
        ("22:00-24:00", ["22:00", "23:59"], ["00:00", "21:59"]),
        ("00:00-24:00", ["00:00", "12:00", "23:59"], []),
        ("02:00-03:00; 14:00-15:00", ["02:30", "14:30"], ["03:30", "15:30"]),
    ],
)
def test_a_window_holds_its_beginning_and_not_its_end_also_over_midnight(
    window: str, inside: list[str], outside: list[str]
) -> None:
    parsed = parse_window(f"{window} UTC")

    assert str(parsed) == f"{window} UTC"
    assert all(parsed.holds(_utc(f"2026-05-03T{text}")) for text in inside)
    assert not any(parsed.holds(_utc(f"2026-05-03T{text}")) for text in outside)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("Sun 02:00-04:00", ["2026-05-03T03:00"], ["2026-05-02T03:00", "2026-05-04T03:00"]),
        # It belongs to the day it begins on: Friday night is Friday's, also after midnight.
        ("Mon-Fri 22:00-05:00", ["2026-05-02T04:00", "2026-05-01T23:00"], ["2026-05-03T04:00", "2026-05-02T23:00"]),
        ("Sat-Mon 10:00-11:00", ["2026-05-02T10:30", "2026-05-03T10:30", "2026-05-04T10:30"], ["2026-05-05T10:30"]),
        ("mon,WED 10:00-11:00", ["2026-05-04T10:30", "2026-05-06T10:30"], ["2026-05-05T10:30"]),
        ("Sun-Sat 10:00-11:00", [f"2026-05-0{day}T10:30" for day in range(3, 10)], []),
    ],
)
def test_a_window_may_be_for_some_days_of_the_week(window: str, inside: list[str], outside: list[str]) -> None:
    parsed = parse_window(f"{window} UTC")

    assert all(parsed.holds(_utc(text)) for text in inside)
    assert not any(parsed.holds(_utc(text)) for text in outside)


def test_a_window_of_a_place_goes_by_the_clocks_there() -> None:
    night = parse_window("02:00-04:00 Europe/Berlin")

    assert night.holds(_utc("2026-05-03T00:30"))
    assert not night.holds(_utc("2026-05-03T02:30"))
    assert night.holds(_utc("2026-01-03T02:30"))


def test_a_window_without_a_place_goes_by_the_clock_of_the_device() -> None:
    night = parse_window("02:00-04:00")

    assert night.holds(datetime(2026, 5, 3, 3).astimezone())
    assert not night.holds(datetime(2026, 5, 3, 5).astimezone())


@pytest.mark.parametrize(
    ("window", "opens", "minutes"),
    [
        # Clocks go from 02:00 to 03:00.
        ("02:15-02:45", "2026-03-29T01:15", 30),
        ("02:30-03:00", "2026-03-29T01:30", 30),
        ("01:30-02:30", "2026-03-29T00:30", 60),
        ("01:00-04:00", "2026-03-29T00:00", 120),
        # Clocks go from 03:00 to 02:00.
        ("02:15-02:45", "2026-10-25T00:15", 30),
        ("01:00-04:00", "2026-10-24T23:00", 240),
        ("02:30-03:30", "2026-10-25T00:30", 120),
    ],
)
def test_on_the_nights_that_clocks_change_a_window_opens_once_and_for_some_time(
    window: str, opens: str, minutes: int
) -> None:
    parsed = parse_window(f"{window} Europe/Berlin")
    begin = _utc(opens)
    open_minutes = [minute for minute in range(-240, 480) if parsed.holds(begin + timedelta(minutes=minute))]

    assert open_minutes == list(range(minutes))
    assert parsed.opens_at(begin - timedelta(hours=3)).astimezone(UTC) == begin


@given(
    hours=st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 23), st.integers(0, 59)),
    days=st.sets(st.sampled_from(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]), min_size=1),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia"]),
    moment=st.integers(0, 6 * 365 * 24 * 60).map(lambda minutes: SUNDAY + timedelta(minutes=minutes)),
)
def test_every_window_opens_within_nine_days_and_is_open_then(
    hours: tuple[int, int, int, int], days: set[str], zone: str, moment: datetime
) -> None:
    text = f"{','.join(sorted(days))} {hours[0]:02}:{hours[1]:02}-{hours[2]:02}:{hours[3]:02} {zone}"
    if hours[:2] == hours[2:]:
        with pytest.raises(WindowError):
            parse_window(text)
        return
    window = parse_window(text)
    opens = window.opens_at(moment)

    assert moment < opens <= moment + timedelta(days=9)
    assert window.holds(opens)
    assert parse_window(str(window)) == window


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:00",
        "2:00-5:00",
        "24:00-02:00",
        "02:60-03:00",
        "02:00-25:00",
        "02:00-02:00",
        "02:00-05:00;",
        "Someday 02:00-05:00",
        "Mon- 02:00-05:00",
        "Mon,,Tue 02:00-05:00",
        "02:00-05:00 Nowhere/Atlantis",
        "02:00-05:00 ../../etc/passwd",
        "; ".join(["02:00-05:00"] * 33),
    ],
)
def test_a_text_that_is_no_window_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(WindowError, match="Mon-Fri"):
        parse_window(text)
