"""Waiting for what another program does and tells nobody: asked again and again, for a bounded time."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

#: Longer than anything here takes on a busy machine; only a failure waits so long.
PATIENCE_S = 300.0


def until(ask: Callable[[], Found], wanted: Callable[[Found], object] = bool, *, every_s: float = 0.02) -> Found:
    """Return the first answer of `ask` that is `wanted`; fail with the last one when none is in time."""
    pause = threading.Event()
    end = time.monotonic() + PATIENCE_S
    while not wanted(found := ask()):
        assert time.monotonic() < end, f"waited {PATIENCE_S:g} s in vain, at last for {found!r}"
        pause.wait(every_s)
    return found


def until_it_listens(port: int, server: "subprocess.Popen[bytes]", *, told: Callable[[], str] = str) -> None:
    """Wait until `server` accepts connections on `port` of this machine; when it ends instead, fail with `told`."""

    def listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            assert server.poll() is None, f"{server.args!r} ended with {server.returncode} {told()}"
            return False
        return True

    until(listens)
