"""Work in threads, in order and within a budget.

Hashing, decoding and copying release the interpreter's lock, so two threads are worth having; what they may hold
at a time is bounded, because a device has little memory and because what was fetched but not written yet is
fetched again after a kill.
"""

import ctypes
import gc
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from overhaul.progress import Progress, Silence

#: Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
#: From here on memory is mapped by itself and given back as soon as it is free. Just above the pieces of 1 MiB in which
#: bytes are moved: mapping each of those anew costs a second of page faults a gigabyte and saves 2 MiB.
_MAPPED_FROM = 1280 * 1024
#: So much free memory at the end of the heap is given back.
_TRIMMED_FROM = 128 * 1024

#: Of linux/mman.h.
_MADV_DONTNEED = 4
#: A private mapping of a file that cannot be written, in /proc/self/smaps; its inode is not 0.
_MAPPED_FILE = re.compile(
    r"^(?P<begin>[0-9a-f]+)-(?P<end>[0-9a-f]+) r-[-x]p \S+ \S+ [1-9][0-9]* .*\n"
    r"(?:[A-Z]\w+:.*\n)*?Anonymous: +(?P<anonymous_kib>[0-9]+) kB$",
    re.MULTILINE,
)

_Item = TypeVar("_Item")
_Material = TypeVar("_Material")
_Result = TypeVar("_Result")
_Other = TypeVar("_Other")


def keep_no_freed_memory() -> None:
    """Let what is freed go back to the system at once, where the C library can be told so.

    glibc gives each thread an arena of its own and keeps in each what was freed there. It also raises by itself the
    size from which memory is mapped, so that windows and streams of megabytes end up between small objects and hold
    the heap together. Big buffers are rare here: an assembly takes half of the memory for it and no more time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
        mallopt(_M_TRIM_THRESHOLD, _TRIMMED_FROM)


def give_memory_back() -> None:
    """Give back what is free already, before a step that takes much; worth a moment, so not for small steps.

    The program's code goes as well: what verified the metadata, a quarter of the agent, is not run while bytes are
    moved, and what is run comes back from the page cache.
    """
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
    _let_go_of_code()


def _let_go_of_code() -> None:
    """Take out of this process the pages of files that it maps and cannot write to, where there are any."""
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with suppress(OSError):
        for found in _MAPPED_FILE.finditer(Path("/proc/self/smaps").read_text()):
            # Relocations were written before their place became read-only, and would be lost.
            if int(found["anonymous_kib"]) == 0:
                begin, end = int(found["begin"], 16), int(found["end"], 16)
                madvise(begin, end - begin, _MADV_DONTNEED)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="overhaul")
    try:
        yield pool
    finally:
        # After an error or an interruption nothing is begun any more; what runs is waited for.
        pool.shutdown(cancel_futures=True)


def run_ahead(
    items: Iterable[_Item],
    *,
    pull: Callable[[_Item], _Material],
    work: Callable[[_Item, _Material], _Result],
    weight: Callable[[_Item], int],
    budget: int,
    threads: int,
) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with what `work` made of it, in order.

    `pull` gets the material of an item in the caller's thread, and only when the items under way together with it
    weigh no more than `budget`, or nothing is under way; `work` runs in one of the threads. When `pull` fails, what was
    pulled before is still worked on; when the caller is interrupted, it is not.
    """
    under_way: deque[tuple[_Item, Future[_Result]]] = deque()
    total = 0
    with _pool(threads) as pool:
        for item in items:
            while under_way and total + weight(item) > budget:
                done, future = under_way.popleft()
                result = future.result()
                total -= weight(done)
                yield done, result
            try:
                material = pull(item)
            except Exception:
                # What was pulled before is not thrown away because the network broke.
                wait(future for _item, future in under_way)
                raise
            total += weight(item)
            under_way.append((item, pool.submit(work, item, material)))
        while under_way:
            done, future = under_way.popleft()
            yield done, future.result()


def side_by_side(
    first: Callable[[Progress], _Result], second: Callable[[Progress], _Other], *, progress: Progress
) -> tuple[_Result, _Other]:
    """Return what two functions return: `first` runs in a thread, `second` in the caller's.

    Both advance the step of `progress` that has begun. When `second` fails or is interrupted, `first` stops where it
    next advances.
    """
    shared = _Shared(progress)
    with _pool(1) as pool:
        future = pool.submit(first, shared)
        try:
            made = second(shared)
        except BaseException:
            shared.stop()
            raise
        return future.result(), made


class _StoppedError(Exception):
    """Nobody waits for what a thread does any more."""


class _Shared(Silence):
    """One step that two threads advance."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._is_stopped = False

    def advance(self, amount: int) -> None:
        with self._lock:
            if self._is_stopped:
                raise _StoppedError
            self._progress.advance(amount)

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
