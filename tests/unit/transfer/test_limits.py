"""How slow is too slow, and how fast is too fast."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from overhaul.transfer.fetcher import Request, Response
from overhaul.transfer.limited import LimitedFetcher
from overhaul.transfer.wire import Pace, TooSlowError


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Instant:
    """A server that sends a hundred pieces of a thousand bytes at once."""

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        yield Response(url=request.url, status=200, headers={}, body=iter([bytes(1000)] * 100))


def _read(fetcher: LimitedFetcher) -> int:
    with fetcher.fetch(Request(url="https://example/")) as response:
        return len(b"".join(response.body))


def test_a_cap_spreads_bytes_over_time_across_requests() -> None:
    clock = Clock()
    fetcher = LimitedFetcher(Instant(), max_bytes_per_s=10_000, clock=clock, wait=clock.wait)
    assert _read(fetcher) + _read(fetcher) == 200_000
    assert 19.0 <= clock.now - 100 <= 20.01


def test_a_quiet_minute_buys_no_burst() -> None:
    clock = Clock()
    fetcher = LimitedFetcher(Instant(), max_bytes_per_s=10_000, clock=clock, wait=clock.wait)
    _read(fetcher)
    clock.wait(60)
    begun = clock.now
    _read(fetcher)
    assert clock.now - begun >= 8.9


def test_a_trickle_is_too_slow_when_its_window_ends() -> None:
    pace = Pace(min_bytes_per_s=100, window_s=10)
    for _ in range(9):
        pace.add(received_bytes=1, waited_s=1)
    with pytest.raises(TooSlowError, match="slower than 100"):
        pace.add(received_bytes=1, waited_s=1)


def test_each_window_is_judged_alone() -> None:
    pace = Pace(min_bytes_per_s=100, window_s=10)
    pace.add(received_bytes=1_000_000, waited_s=10)
    with pytest.raises(TooSlowError):
        pace.add(received_bytes=0, waited_s=10)


def test_enough_is_enough_and_time_not_spent_waiting_does_not_count() -> None:
    pace = Pace(min_bytes_per_s=100, window_s=10)
    for _ in range(100):
        pace.add(received_bytes=500, waited_s=5)
        pace.add(received_bytes=0, waited_s=0)
