"""Chunks and pieces of published files from other devices of the same network, believed only by their digest.

Each neighbour is asked by a thread of its own for what all of them take from one list; so a slow one gets little, and
several share the work. What one lacks, another may have. The first wrong byte or failure of a neighbour ends it for
this update, and what it had taken goes back on the list; one that has given all it may for the moment is asked again
later, for a while. What is left at the end comes from the repository.

Neighbours are never asked what there is to install: only the signed record, which came from the repository, says that.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple, Protocol, Self, TypeVar

from overhaul.content.errands import Errands, Outcome
from overhaul.content.index import Chunk, chunk_id
from overhaul.errors import NetworkError
from overhaul.progress import Progress
from overhaul.transfer.neighbour import MAX_RUN_BYTES, NeighbourBusyError

Wanted = TypeVar("Wanted")

#: More neighbours than this are not asked at once.
MAX_NEIGHBOURS = 4


class Neighbour(AbstractContextManager["Neighbour"], Protocol):
    """One neighbour; `transfer.neighbour.HttpNeighbour` is one.

    It raises `NeighbourBusyError` when it may be asked again later, and another `NetworkError` when it fails.
    """

    @property
    def address(self) -> str:
        """What it is called."""

    def has_image(self, index_sha256: str) -> bool:
        """Tell whether it says that it has the image with this index."""

    def chunks(self, index_sha256: str, *, first: int, last: int, size: int) -> bytes | None:
        """Return what it says are chunks."""

    def piece(self, sha256: str, *, size: int) -> bytes | None:
        """Return what it says has this digest."""


#: A neighbour that has given all it may is waited for so long, all in all without anything from it.
_BUSY_PATIENCE_S = 30.0

#: The first and the last number of chunks that lie behind one another.
Run = tuple[int, int]


@dataclass(eq=False)
class _Asked:
    neighbour: Neighbour
    refused: str = ""


class Piece(NamedTuple):
    """A published file, or a part of one, that a signed digest names."""

    sha256: str
    size: int


@dataclass
class Neighbourhood:
    """The neighbours of one update; those that failed are not asked again."""

    #: Called when the first one is needed.
    find: Callable[[], Sequence[Neighbour]]
    #: Bytes that came from neighbours and were right.
    received_bytes: int = 0
    #: Why neighbours were given up, in sentences.
    refused: list[str] = field(default_factory=list)
    wait: Callable[[float], None] = time.sleep
    _asked: list[_Asked] | None = None
    #: Who says that it has an image.
    _known: dict[str, list[_Asked]] = field(default_factory=dict)
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
        return bool(self._having(index_sha256))

    def pieces(
        self, wanted: Sequence[Piece], keep: Callable[[Piece, bytes], None], *, index_sha256: str
    ) -> Sequence[Piece]:
        """Have `keep` take each piece that a neighbour with the image has; return those that nobody gave."""
        if not wanted:
            return ()
        errands = Errands(dict.fromkeys(wanted))
        self._share_out(
            errands,
            self._having(index_sha256),
            ask=lambda neighbour, piece: neighbour.piece(piece.sha256, size=piece.size),
            is_right=lambda piece, data: hashlib.sha256(data).hexdigest() == piece.sha256,
            take=keep,
        )
        return errands.left

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

        def ask(neighbour: Neighbour, run: Run) -> bytes | None:
            first, last = run
            size = chunks[last].end - chunks[first].offset
            return neighbour.chunks(index_sha256, first=first, last=last, size=size)

        def is_right(run: Run, data: bytes) -> bool:
            view, origin = memoryview(data), chunks[run[0]].offset
            wanted = chunks[run[0] : run[1] + 1]
            return all(chunk_id(view[chunk.offset - origin : chunk.end - origin]) == chunk.id for chunk in wanted)

        def take(run: Run, data: bytes) -> None:
            write(chunks[run[0]].offset, memoryview(data))
            with self._lock:
                progress.advance(len(data))

        errands = Errands(plan_runs(chunks, numbers))
        self._share_out(errands, self._having(index_sha256), ask=ask, is_right=is_right, take=take)
        unfinished = {number for first, last in errands.left for number in range(first, last + 1)}
        return [number for number in numbers if number in unfinished]

    def _share_out(
        self,
        errands: Errands[Wanted],
        among: Sequence[_Asked],
        *,
        ask: Callable[[Neighbour, Wanted], bytes | None],
        is_right: Callable[[Wanted, bytes], bool],
        take: Callable[[Wanted, bytes], None],
    ) -> None:
        """Have neighbours do errands, few at once; whoever fails makes room for the next."""

        def one_errand(asked: _Asked, wanted: Wanted) -> Outcome:
            data = ask(asked.neighbour, wanted)
            if data is None:
                return Outcome.LACKING
            if not is_right(wanted, data):
                self._drop_liar(asked)
                return Outcome.LEFT
            take(wanted, data)
            with self._lock:
                self.received_bytes += len(data)
            return Outcome.DONE

        def work(asked: _Asked) -> None:
            waited_s = 0.0
            while not asked.refused and (wanted := errands.next(asked)) is not None:
                outcome, pause_s = Outcome.LEFT, 0.0
                try:
                    outcome = one_errand(asked, wanted)
                except NeighbourBusyError as error:
                    pause_s = error.retry_after_s
                except NetworkError as error:
                    self._drop(asked, str(error))
                finally:
                    errands.end(asked, outcome)
                waited_s = 0.0 if outcome is Outcome.DONE else waited_s + pause_s
                if waited_s > _BUSY_PATIENCE_S:
                    return
                if pause_s:
                    self.wait(pause_s)

        with ThreadPoolExecutor(MAX_NEIGHBOURS, thread_name_prefix="neighbour") as pool:
            list(pool.map(work, among))

    def _having(self, index_sha256: str) -> list[_Asked]:
        if index_sha256 not in self._known:
            willing = list(self._willing())
            # All at once: those that do not answer are waited for together.
            with ThreadPoolExecutor(max(1, len(willing)), thread_name_prefix="neighbour") as pool:
                answers = pool.map(lambda asked: self._has(asked, index_sha256), willing)
            self._known[index_sha256] = [asked for asked, has in zip(willing, answers, strict=True) if has]
        return [asked for asked in self._known[index_sha256] if not asked.refused]

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
