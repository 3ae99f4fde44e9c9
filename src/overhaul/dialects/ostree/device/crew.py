"""Many small requests at once, through the fetching seam.

A repository without deltas is thousands of small files, so what counts is how many requests are under way while a
server is far away, and how little its threads are in each other's way while it is near: they share one interpreter. So
a crew begins with two threads and grows as long as the process leaves a processor idle, that is, waits for the
network. Each thread has a fetcher of its own (a fetcher belongs to one thread) and keeps its connection. What is wanted
is asked for in the order given, a bounded number ahead of the answers, so that memory does not grow with the pull.
"""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from overhaul.transfer.fetcher import Fetcher

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

#: Threads that a crew begins with.
_FIRST_THREADS = 2
#: How often a crew looks whether it should grow.
_LOOK_EVERY_S = 0.1
#: The part of one processor's time below which the threads are held to be waiting.
_BUSY = 0.8


class Crew(Generic[_Task, _Result]):
    """Threads that carry tasks out; leaving the context ends them, after an error without beginning anything new."""

    def __init__(
        self,
        work: Callable[[Fetcher, _Task], _Result],
        *,
        open_fetcher: Callable[[], Fetcher],
        threads: int,
    ) -> None:
        self._work = work
        self._open_fetcher = open_fetcher
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[_Task, _Result | None, BaseException | None]] = SimpleQueue()
        self._stopped = threading.Event()
        self._most_threads = threads
        self._threads: list[threading.Thread] = []
        self._looked_s = self._worked_s = 0.0
        #: Tasks given and not yet taken back.
        self.under_way = 0
        #: How many tasks may be under way.
        self.capacity = 4 * threads

    def __enter__(self) -> "Crew[_Task, _Result]":
        self._grow(_FIRST_THREADS)
        self._begin_a_look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        for _thread in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def give(self, task: _Task) -> None:
        """Have a task carried out."""
        self.under_way += 1
        self._tasks.put(task)

    def take(self) -> tuple[_Task, _Result]:
        """Return the next task that is done, with its result; raise what it raised."""
        while True:
            try:
                task, result, error = self._results.get(timeout=self._until_next_look())
                break
            except Empty:
                continue
        self.under_way -= 1
        if error is not None:
            raise error
        return task, result  # type: ignore[return-value] # without an error there is a result, be it None

    def _until_next_look(self) -> float | None:
        """Grow when it is time to; return the seconds until the next look, None when there is none."""
        if len(self._threads) == self._most_threads:
            return None
        passed_s = time.monotonic() - self._looked_s
        if passed_s < _LOOK_EVERY_S:
            return _LOOK_EVERY_S - passed_s
        if time.process_time() - self._worked_s < _BUSY * passed_s:
            self._grow(2 * len(self._threads))
        self._begin_a_look()
        return _LOOK_EVERY_S

    def _begin_a_look(self) -> None:
        self._looked_s, self._worked_s = time.monotonic(), time.process_time()

    def _grow(self, threads: int) -> None:
        for number in range(len(self._threads), min(threads, self._most_threads)):
            self._threads.append(threading.Thread(target=self._run, name=f"fetch-{number}"))
            self._threads[-1].start()

    def _run(self) -> None:
        fetcher: Fetcher | None = None
        while (task := self._tasks.get()) is not None and not self._stopped.is_set():
            try:
                if fetcher is None:
                    fetcher = self._open_fetcher()
                self._results.put((task, self._work(fetcher, task), None))
            except BaseException as error:  # it is raised by `take`, in the thread that asked
                self._results.put((task, None, error))
