"""Chunks from other devices of the same network, believed only by their digest.

Each neighbour is asked by a thread of its own for runs of chunks, which all of them take from one list; so a slow one
gets few, and several share the work. The first wrong byte or failure of a neighbour ends it for this update, and what
it had taken goes back on the list. What is left at the end comes from the repository.

Neighbours are never asked what there is to install: only the signed record, which came from the repository, says that.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import Condition, Lock
from typing import Protocol, Self

from overhaul.content.index import Chunk, chunk_id
from overhaul.errors import NetworkError
from overhaul.progress import Progress
from overhaul.transfer.neighbour import MAX_RUN_BYTES

#: More neighbours than this are not asked at once.
MAX_NEIGHBOURS = 4


class Neighbour(AbstractContextManager["Neighbour"], Protocol):
    """One neighbour; `transfer.neighbour.HttpNeighbour` is one. It raises `NetworkError` when it fails."""

    @property
    def address(self) -> str:
        """What it is called."""

    def has_image(self, index_sha256: str) -> bool:
        """Tell whether it says that it has the image with this index."""

    def index(self, index_sha256: str, *, size: int) -> bytes | None:
        """Return what it says is an index."""

    def chunks(self, index_sha256: str, *, first: int, last: int, size: int) -> bytes | None:
        """Return what it says are chunks."""


#: The first and the last number of chunks that lie behind one another.
Run = tuple[int, int]


class _Outcome(Enum):
    """What became of a run."""

    GIVEN = auto()
    #: The neighbour does not give it, and goes on with others.
    LACKING = auto()
    #: The neighbour is not asked any more.
    FAILED = auto()


@dataclass
class _Asked:
    neighbour: Neighbour
    refused: str = ""


class _Runs:
    """Runs to be fetched; one that a neighbour failed at is given to the next who asks."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._waiting = deque(runs)
        self._under_way = 0
        #: Runs that came from nobody.
        self._missed: list[Run] = []
        self._changed = Condition()

    def next(self) -> Run | None:
        """Return a run, waiting while others may still fail at theirs; None when there is nothing left to do."""
        with self._changed:
            while not self._waiting and self._under_way:
                self._changed.wait()
            if not self._waiting:
                return None
            self._under_way += 1
            return self._waiting.popleft()

    def done(self, run: Run, outcome: _Outcome) -> None:
        """Say what became of a run."""
        with self._changed:
            self._under_way -= 1
            if outcome is _Outcome.FAILED:
                self._waiting.append(run)
            elif outcome is _Outcome.LACKING:
                self._missed.append(run)
            self._changed.notify_all()

    @property
    def left(self) -> Sequence[Run]:
        """Runs that nobody gave."""
        return (*self._waiting, *self._missed)


@dataclass
class Neighbourhood:
    """The neighbours of one update; those that failed are not asked again."""

    #: Called when the first one is needed.
    find: Callable[[], Sequence[Neighbour]]
    #: Bytes that came from neighbours and were right.
    received_bytes: int = 0
    #: Why neighbours were given up, in sentences.
    refused: list[str] = field(default_factory=list)
    _asked: list[_Asked] | None = None
    _lock: Lock = field(default_factory=Lock)
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave all neighbours."""
        self._open.close()

    def has_image(self, index_sha256: str) -> bool:
        """Tell whether any neighbour says that it has the image with this index."""
        with ThreadPoolExecutor(MAX_NEIGHBOURS, thread_name_prefix="neighbour") as pool:
            return bool(self._having(index_sha256, pool))

    def index(self, sha256: str, *, size: int) -> bytes | None:
        """Return the index with this digest from whoever has it."""
        for asked in self._willing():
            try:
                data = asked.neighbour.index(sha256, size=size)
            except NetworkError as error:
                self._drop(asked, str(error))
                continue
            if data is None:
                continue
            if hashlib.sha256(data).hexdigest() != sha256:
                self._drop_liar(asked)
                continue
            self.received_bytes += len(data)
            return data
        return None

    def fill(
        self,
        write: Callable[[int, memoryview], None],
        chunks: Sequence[Chunk],
        numbers: Sequence[int],
        *,
        index_sha256: str,
        progress: Progress,
    ) -> list[int]:
        """Have `write` put chunks at their offsets; return the numbers of those that no neighbour had."""
        if not numbers:
            return []
        with ThreadPoolExecutor(MAX_NEIGHBOURS, thread_name_prefix="neighbour") as pool:
            having = self._having(index_sha256, pool)[:MAX_NEIGHBOURS]
            runs = _Runs(plan_runs(chunks, numbers))

            def take(asked: _Asked) -> None:
                while not asked.refused and (run := runs.next()) is not None:
                    outcome = _Outcome.FAILED
                    try:
                        outcome = self._take(asked, write, chunks, run, index_sha256)
                    finally:
                        runs.done(run, outcome)
                    if outcome is _Outcome.GIVEN:
                        with self._lock:
                            progress.advance(chunks[run[1]].end - chunks[run[0]].offset)

            list(pool.map(take, having))
        unfinished = {number for first, last in runs.left for number in range(first, last + 1)}
        return [number for number in numbers if number in unfinished]

    def _take(
        self,
        asked: _Asked,
        write: Callable[[int, memoryview], None],
        chunks: Sequence[Chunk],
        run: Run,
        index_sha256: str,
    ) -> _Outcome:
        first, last = run
        origin = chunks[first].offset
        size = chunks[last].end - origin
        try:
            data = asked.neighbour.chunks(index_sha256, first=first, last=last, size=size)
        except NetworkError as error:
            self._drop(asked, str(error))
            return _Outcome.FAILED
        if data is None:
            return _Outcome.LACKING
        view = memoryview(data)
        for chunk in chunks[first : last + 1]:
            if chunk_id(view[chunk.offset - origin : chunk.end - origin]) != chunk.id:
                self._drop_liar(asked)
                return _Outcome.FAILED
        write(origin, view)
        with self._lock:
            self.received_bytes += size
        return _Outcome.GIVEN

    def _having(self, index_sha256: str, pool: ThreadPoolExecutor) -> list[_Asked]:
        willing = list(self._willing())
        answers = pool.map(lambda asked: self._has(asked, index_sha256), willing)
        return [asked for asked, has in zip(willing, answers, strict=True) if has]

    def _has(self, asked: _Asked, index_sha256: str) -> bool:
        try:
            return asked.neighbour.has_image(index_sha256)
        except NetworkError as error:
            self._drop(asked, str(error))
            return False

    def _willing(self) -> Iterator[_Asked]:
        if self._asked is None:
            self._asked = [_Asked(self._open.enter_context(neighbour)) for neighbour in self.find()]
        return (asked for asked in self._asked if not asked.refused)

    def _drop_liar(self, asked: _Asked) -> None:
        self._drop(asked, f"The neighbour {asked.neighbour.address} sent wrong bytes; nothing of them was used.")

    def _drop(self, asked: _Asked, reason: str) -> None:
        with self._lock:
            asked.refused = reason
            self.refused.append(reason)


def plan_runs(chunks: Sequence[Chunk], numbers: Sequence[int]) -> list[Run]:
    """Return (first, last) of runs of neighbouring chunks, none bigger than a run may be unless it is one chunk."""
    runs: list[Run] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1 and chunks[number].end - chunks[runs[-1][0]].offset <= MAX_RUN_BYTES:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
