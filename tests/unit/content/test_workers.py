"""Threads that keep to order and budget."""

import ctypes
import mmap
import os
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.waiting import PATIENCE_S

from overhaul.content.workers import give_memory_back, run_ahead, side_by_side
from overhaul.progress import Progress, Silence


@settings(max_examples=50)
@given(weights=st.lists(st.integers(0, 10), max_size=30), budget=st.integers(0, 25), threads=st.integers(1, 3))
def test_results_come_in_order_and_no_more_than_the_budget_is_under_way(
    weights: list[int], budget: int, threads: int
) -> None:
    under_way: list[int] = []
    lock = threading.Lock()
    caller = threading.current_thread()

    def pull(item: tuple[int, int]) -> int:
        assert threading.current_thread() is caller
        with lock:
            assert not under_way or sum(weights[n] for n in under_way) + item[1] <= budget or item[1] == 0
        return item[0] * 2

    def work(item: tuple[int, int], material: int) -> int:
        with lock:
            under_way.append(item[0])
        return material + 1

    items = list(enumerate(weights))
    results = []
    for item, result in run_ahead(
        items, pull=pull, work=work, weight=lambda item: item[1], budget=budget, threads=threads
    ):
        with lock:
            under_way.remove(item[0])
        results.append(result)
    assert results == [number * 2 + 1 for number in range(len(items))]


def test_after_an_error_nothing_is_begun_any_more() -> None:
    begun: list[int] = []

    def work(item: int, _material: None) -> None:
        begun.append(item)
        if item == 3:
            raise ValueError(item)

    with pytest.raises(ValueError, match="3"):
        for _ in run_ahead(range(1000), pull=lambda _: None, work=work, weight=lambda _: 1, budget=2, threads=1):
            pass
    assert max(begun) <= 6


def test_an_error_of_the_material_does_not_throw_away_what_came_before() -> None:
    def pull(item: int) -> None:
        if item == 5:
            raise ConnectionError

    done: list[int] = []
    with pytest.raises(ConnectionError):
        for _ in run_ahead(
            range(9), pull=pull, work=lambda item, _: done.append(item), weight=lambda _: 1, budget=9, threads=2
        ):
            pass
    assert sorted(done) == [0, 1, 2, 3, 4]


class _Counted(Silence):
    """A step that counts what it is told, slowly enough for two threads to meet."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, amount: int) -> None:
        before = self.done
        os.sched_yield()
        self.done = before + amount


def test_two_things_go_on_at_the_same_time_and_share_a_step() -> None:
    met = threading.Barrier(2, timeout=PATIENCE_S)

    def advance(progress: Progress, name: str) -> str:
        met.wait()
        for _ in range(2000):
            progress.advance(1)
        return name

    counted = _Counted()
    both = side_by_side(lambda shared: advance(shared, "one"), lambda shared: advance(shared, "two"), progress=counted)
    assert both == ("one", "two")
    assert counted.done == 4000


def test_when_the_callers_work_fails_the_other_ends_soon() -> None:
    advanced = threading.Event()

    def endless(progress: Progress) -> None:
        while True:
            progress.advance(1)
            advanced.set()

    def failing(_progress: Progress) -> None:
        assert advanced.wait(PATIENCE_S)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(endless, failing, progress=Silence())


def test_when_the_work_in_the_thread_fails_its_error_comes_after_the_callers_work() -> None:
    done: list[str] = []

    def failing(_progress: Progress) -> None:
        raise ValueError("the medium")

    with pytest.raises(ValueError, match="the medium"):
        side_by_side(failing, lambda _progress: done.append("packed"), progress=Silence())
    assert done == ["packed"]


def test_what_only_was_read_of_files_is_given_back_and_what_was_written_is_kept(tmp_path: Path) -> None:
    size = 8 * 1024 * 1024
    path = tmp_path / "mapped"
    path.write_bytes(b"x" * size)
    libc = ctypes.CDLL(None)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as code,
        mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as relocated,
    ):
        relocated[:5] = b"moved"
        # As the dynamic linker does with what it relocated.
        address = ctypes.addressof(ctypes.c_char.from_buffer(relocated))
        assert libc.mprotect(ctypes.c_void_p(address), size, mmap.PROT_READ) == 0
        assert code[:] == b"x" * size
        before = _mapped_files_kib()
        give_memory_back()
        assert _mapped_files_kib() < before - size // 1024 // 2
        assert relocated[:5] == b"moved"
        assert code[:] == b"x" * size


def _mapped_files_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"^RssFile:\s+(\d+) kB$", status, re.MULTILINE)[0])
