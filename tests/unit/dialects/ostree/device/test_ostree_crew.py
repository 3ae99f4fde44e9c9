"""Threads that fetch many small files, and whoever waits for them."""

import itertools
import threading
import time
from contextlib import AbstractContextManager

import pytest

from overhaul.dialects.ostree.device.crew import Crew
from overhaul.transfer.fetcher import Fetcher, Request, Response


class _Unasked:
    """A fetcher that nobody asks."""

    def fetch(self, request: Request) -> AbstractContextManager[Response]:
        """Fail the test."""
        raise AssertionError(request.url)


def test_results_come_back_with_their_tasks() -> None:
    def double(_fetcher: Fetcher, task: int) -> int:
        return 2 * task

    with Crew(double, open_fetcher=_Unasked, threads=3) as crew:
        for task in range(10):
            crew.give(task)
        found = dict(crew.take() for _task in range(10))
    assert found == {task: 2 * task for task in range(10)}
    assert crew.under_way == 0


def test_what_a_task_raises_is_raised_to_whoever_waits() -> None:
    def fail(_fetcher: Fetcher, task: int) -> None:
        raise ValueError(task)

    with Crew(fail, open_fetcher=_Unasked, threads=2) as crew:
        crew.give(7)
        with pytest.raises(ValueError, match="7"):
            crew.take()


def test_a_crew_that_waits_for_the_network_grows_to_its_full_number() -> None:
    arrived = threading.Barrier(8)

    def wait_for_the_others(_fetcher: Fetcher, _task: int) -> int:
        return arrived.wait(60)

    with Crew(wait_for_the_others, open_fetcher=_Unasked, threads=8) as crew:
        for task in range(8):
            crew.give(task)
        assert sorted(crew.take()[1] for _task in range(8)) == list(range(8))


def test_a_crew_that_keeps_a_processor_busy_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count(1)
    looked_often = threading.Event()

    def process_time() -> float:
        if next(looks) == 5:
            looked_often.set()
        return time.monotonic()

    def work(_fetcher: Fetcher, _task: int) -> str:
        assert looked_often.wait(60)
        return threading.current_thread().name

    monkeypatch.setattr(time, "process_time", process_time)
    with Crew(work, open_fetcher=_Unasked, threads=8) as crew:
        for task in range(8):
            crew.give(task)
        assert len({crew.take()[1] for _task in range(8)}) <= 2
