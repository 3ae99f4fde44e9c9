"""Threads that keep to order and budget."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overhaul.content.workers import run_ahead


@settings(deadline=None, max_examples=50)
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
