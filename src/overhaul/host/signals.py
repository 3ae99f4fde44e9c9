"""Signals that the main thread notices whatever it waits for.

The interpreter only takes note of a signal when it comes; the handler is run by the main thread, between two of its
instructions. When that thread waits for a lock, a queue or an event, the signal must break into the wait, and one
that comes in the moment before the wait begins, or to another thread, does not: its handler runs when the wait is
over by itself, which for a daemon between two cycles may be hours. So a thread of its own is told of each signal
through a pipe (`signal.set_wakeup_fd`), and breaks into the main thread's wait with SIGURG, a signal that means
nothing to anybody, until the main thread has answered.
"""

import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

#: How long the main thread may take to notice a signal before its wait is broken into, and is so once more.
_AGAIN_S = 0.05


@contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle each signal of `numbers` promptly in the main thread, which must be the one that calls.

    The earlier handlers are put back in the end. An event loop watches signals by itself and cannot be run inside.
    """
    main = threading.get_ident()
    noticed = threading.Event()
    reader, writer = socket.socketpair()

    def watch() -> None:
        while came := reader.recv(1):
            if came[0] == signal.SIGURG:
                continue
            noticed.clear()
            while not noticed.wait(_AGAIN_S):
                signal.pthread_kill(main, signal.SIGURG)

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    with reader, writer:
        writer.settimeout(0)
        earlier = {signal.SIGURG: signal.signal(signal.SIGURG, lambda *_: noticed.set())}
        earlier_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            watcher.start()
            for number in numbers:
                earlier[signal.Signals(number)] = signal.signal(number, handler)
            yield
        finally:
            signal.set_wakeup_fd(earlier_fd)
            writer.close()
            watcher.join()
            for number, before in earlier.items():
                signal.signal(number, before)
