"""Signals that the main thread notices whatever it waits for."""

import os
import signal
import threading
from queue import SimpleQueue

import pytest

from overhaul.host.signals import handling

_PATIENCE_S = 60


class _StoppedError(Exception):
    """What a handler raises."""


def test_a_signal_that_comes_to_another_thread_ends_the_wait_of_the_main_one() -> None:
    """What also happens to one that comes to the main thread just before it begins to wait."""
    handled, answers = threading.Event(), SimpleQueue[bool]()

    def stop(_number: int, _frame: object) -> None:
        handled.set()
        raise _StoppedError

    def signalled() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        answers.put(handled.wait(_PATIENCE_S))

    other = threading.Thread(target=signalled)

    def wait() -> None:
        other.start()
        # Without help this ends when the other thread has lost its patience.
        answers.get()

    with handling([signal.SIGTERM], stop), pytest.raises(_StoppedError):
        wait()
    other.join()
    assert answers.get(timeout=_PATIENCE_S)


def test_each_signal_is_handled_and_the_earlier_handlers_come_back() -> None:
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGURG)
    before = [signal.getsignal(number) for number in numbers]
    seen = []
    with handling([signal.SIGUSR1, signal.SIGUSR2], lambda number, _frame: seen.append(number)):
        for _round in range(3):
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                os.kill(os.getpid(), number)
    assert sorted(seen) == [signal.SIGUSR1] * 3 + [signal.SIGUSR2] * 3
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_context_inside_another_leaves_the_outer_one_its_signals() -> None:
    handled, seen = threading.Event(), []

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        handled.set()

    def signalled() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    with handling([signal.SIGUSR1], note):
        with handling([signal.SIGUSR2], note):
            pass
        other = threading.Thread(target=signalled)
        other.start()
        assert handled.wait(_PATIENCE_S)
        other.join()
    assert seen == [signal.SIGUSR1]
