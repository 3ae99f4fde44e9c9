"""Many small requests at once, through the fetching seam.

A repository without deltas is thousands of small files, so what counts is how many requests are under way. Each
thread has a fetcher of its own (a fetcher belongs to one thread) and keeps its connection. What is wanted is asked
for in the order given, a bounded number ahead of the answers, so that memory does not grow with the pull.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from overhaul.transfer.fetcher import Fetcher

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


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
        self._threads = [threading.Thread(target=self._run, name=f"fetch-{number}") for number in range(threads)]
        #: Tasks given and not yet taken back.
        self.under_way = 0
        #: How many tasks may be under way.
        self.capacity = 4 * threads

    def __enter__(self) -> "Crew[_Task, _Result]":
        for thread in self._threads:
            thread.start()
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
        task, result, error = self._results.get()
        self.under_way -= 1
        if error is not None:
            raise error
        return task, result  # type: ignore[return-value] # without an error there is a result, be it None

    def _run(self) -> None:
        fetcher: Fetcher | None = None
        while (task := self._tasks.get()) is not None and not self._stopped.is_set():
            try:
                if fetcher is None:
                    fetcher = self._open_fetcher()
                self._results.put((task, self._work(fetcher, task), None))
            except BaseException as error:  # it is raised by `take`, in the thread that asked
                self._results.put((task, None, error))
