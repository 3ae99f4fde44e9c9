"""Questions and answers between two programs on this machine: one document each way on a Unix socket.

Who may ask is decided by the rights of the socket and its directory. Documents are bounded, and whoever stalls is
dropped, so that one asker cannot keep the others waiting for ever.
"""

import os
import selectors
import socket
from collections.abc import Callable
from pathlib import Path

_PIECE_BYTES = 1 << 16


def ask(path: Path, document: bytes, *, timeout_s: float, at_most: int) -> bytes:
    """Return the answer to `document` of whoever listens on the socket `path`; raise `OSError` when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall(document)
        connection.shutdown(socket.SHUT_WR)
        return _received(connection, at_most)


def answers(path: Path) -> bool:
    """Tell whether somebody listens on the socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


class Answering:
    """Answers on the socket `path`, one asker at a time, until told to stop."""

    def __init__(
        self,
        path: Path,
        answer: Callable[[bytes], bytes],
        *,
        at_most: int,
        question_within_s: float,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._path = path
        self._answer = answer
        self._at_most = at_most
        self._question_within_s = question_within_s
        self._note = note
        self._stop_reader, self._stop_writer = os.pipe()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o660)
        self._listener.listen(16)

    def run(self) -> None:
        """Answer until `stop` is called."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stop_reader, selectors.EVENT_READ)
            while self._stop_reader not in {key.fd for key, _events in selector.select()}:
                connection, _address = self._listener.accept()
                with connection:
                    self._serve(connection)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        os.close(self._stop_reader)

    def stop(self) -> None:
        """Let `run` return; safe in a signal handler."""
        os.close(self._stop_writer)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(self._question_within_s)
        try:
            connection.sendall(self._answer(_received(connection, self._at_most)))
        except OSError as error:
            self._note(f"somebody hung up, stalled or said too much: {error}")


def _received(connection: socket.socket, at_most: int) -> bytes:
    data = bytearray()
    while piece := connection.recv(_PIECE_BYTES):
        data += piece
        if len(data) > at_most:
            raise OSError(f"more than {at_most} bytes")
    return bytes(data)
