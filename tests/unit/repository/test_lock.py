"""Whoever writes to a repository is alone, and a dead writer is in nobody's way."""

import multiprocessing
import os
from pathlib import Path

import msgspec
import pytest
from tests.small_disk import fill, small_disk

from overhaul.repository.layout import LOCK_KEY
from overhaul.repository.local import LocalStorage
from overhaul.repository.lock import (
    CLOCK_MARGIN_SECONDS,
    LEASE_SECONDS,
    Holder,
    LostLockError,
    RepositoryBusyError,
    repository_lock,
)
from overhaul.repository.memory import MemoryStorage
from overhaul.repository.storage import Storage


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["kernel", "lease"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path) if request.param == "kernel" else MemoryStorage()


def test_the_second_is_told_who_the_first_is(storage: Storage) -> None:
    with (
        repository_lock(storage, purpose="publish"),
        pytest.raises(RepositoryBusyError, match="`overhaul publish` on") as refused,
        repository_lock(storage, purpose="repository prune"),
    ):
        pass
    assert refused.value.holder is not None
    assert refused.value.retryable


def test_a_released_lock_can_be_taken_again(storage: Storage) -> None:
    for _ in range(3):
        with repository_lock(storage, purpose="publish") as lock:
            lock.check()


def test_a_second_that_comes_before_the_first_has_said_who_it_is_is_not_told_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    with repository_lock(storage, purpose="publish"):
        pass
    monkeypatch.setattr(os, "pwrite", lambda *_given: 0)  # the moment before it has
    with (
        repository_lock(storage, purpose="publish"),
        pytest.raises(RepositoryBusyError, match="in use by another process") as refused,
        repository_lock(storage, purpose="repository prune"),
    ):
        pass
    assert refused.value.holder is None


def test_a_full_disk_keeps_nobody_out(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "64k") as place:
        storage = LocalStorage(place)
        with repository_lock(storage, purpose="publish"):
            pass
        fill(place)
        with repository_lock(storage, purpose="repository prune") as lock:
            lock.check()


def test_an_error_inside_releases_the_lock(storage: Storage) -> None:
    with pytest.raises(RuntimeError), repository_lock(storage, purpose="publish"):
        raise RuntimeError
    with repository_lock(storage, purpose="publish"):
        pass


def _hold_and_die(root: Path) -> None:
    import os

    holding = repository_lock(LocalStorage(root), purpose="publish")
    holding.__enter__()
    os._exit(9)


def test_the_kernel_frees_the_lock_of_a_process_that_died(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_hold_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 9

    with repository_lock(LocalStorage(tmp_path), purpose="publish"):
        pass


def _leave_lease(storage: Storage, *, ends_at: float) -> bytes:
    holder = Holder(host="elsewhere", pid=7, purpose="publish", since=ends_at - 10, token="other", ends_at=ends_at)
    data = msgspec.json.encode(holder)
    storage.put(LOCK_KEY, data)
    return data


def test_a_lease_that_has_not_surely_ended_is_respected() -> None:
    storage, clock = MemoryStorage(), _Clock()
    _leave_lease(storage, ends_at=clock.now - CLOCK_MARGIN_SECONDS + 1)

    with (
        pytest.raises(RepositoryBusyError, match="elsewhere"),
        repository_lock(storage, purpose="publish", clock=clock),
    ):
        pass


def test_a_lease_that_ended_is_taken_over_and_its_holder_finds_out() -> None:
    storage, clock = MemoryStorage(), _Clock()
    with repository_lock(storage, purpose="publish", clock=clock) as slow:
        clock.now += LEASE_SECONDS + CLOCK_MARGIN_SECONDS + 1
        with repository_lock(storage, purpose="repository prune", clock=clock) as quick:
            quick.check()
            with pytest.raises(LostLockError, match="nothing was published"):
                slow.check()


def test_a_late_holder_does_not_free_the_lease_of_its_successor() -> None:
    storage, clock = MemoryStorage(), _Clock()
    late = repository_lock(storage, purpose="publish", clock=clock)
    late.__enter__()
    clock.now += LEASE_SECONDS + CLOCK_MARGIN_SECONDS + 1
    with repository_lock(storage, purpose="publish", clock=clock):
        late.__exit__(None, None, None)
        with pytest.raises(RepositoryBusyError), repository_lock(storage, purpose="publish", clock=clock):
            pass


def test_a_check_near_the_end_renews_the_lease() -> None:
    storage, clock = MemoryStorage(), _Clock()
    with repository_lock(storage, purpose="publish", clock=clock) as lock:
        clock.now += LEASE_SECONDS * 0.9
        lock.check()
        clock.now += LEASE_SECONDS * 0.9
        with pytest.raises(RepositoryBusyError), repository_lock(storage, purpose="publish", clock=clock):
            pass


def test_a_lock_object_that_cannot_be_read_is_taken_over() -> None:
    storage = MemoryStorage()
    storage.put(LOCK_KEY, b"not a holder")

    with repository_lock(storage, purpose="publish") as lock:
        lock.check()
