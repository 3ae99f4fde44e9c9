"""Questions and answers between two programs of one machine, also when one of them misbehaves."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from overhaul.host import exchange

_PATIENCE_S = 120.0


@contextmanager
def _answering(path: Path) -> Iterator[None]:
    with _running(exchange.Answering(path, bytes.upper, at_most=100, question_within_s=_PATIENCE_S)):
        yield


@contextmanager
def _running(server: exchange.Answering) -> Iterator[None]:
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()


def test_a_question_is_answered_and_the_socket_goes_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "below" / "socket"
    with _answering(path):
        assert exchange.answers(path)
        assert exchange.ask(path, b"how", timeout_s=_PATIENCE_S, at_most=100) == b"HOW"
        assert path.stat().st_mode & 0o777 == 0o660
    assert not path.exists()
    assert not exchange.answers(path)
    with pytest.raises(OSError, match="No such file"):
        exchange.ask(path, b"how", timeout_s=_PATIENCE_S, at_most=100)


def test_who_asks_too_much_stalls_or_hangs_up_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = exchange.Answering(path, bytes.upper, at_most=100, question_within_s=0.01)
    with ExitStack() as open_sockets:
        much, stalled, gone, honest = (
            open_sockets.enter_context(socket.socket(socket.AF_UNIX)) for _number in range(4)
        )
        # All of them are there before the first is looked at, so that only who stalls on purpose is too late.
        for connection, question in ((much, b"x" * 101), (stalled, b"half a question"), (gone, b""), (honest, b"how")):
            connection.settimeout(_PATIENCE_S)
            connection.connect(str(path))
            connection.sendall(question)
        for connection in (much, honest):
            connection.shutdown(socket.SHUT_WR)
        gone.close()
        with _running(server):
            assert much.recv(100) == b""
            assert honest.recv(100) == b"HOW"


def test_an_answer_without_end_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with _answering(path), pytest.raises(OSError, match="more than 2 bytes"):
        exchange.ask(path, b"how", timeout_s=_PATIENCE_S, at_most=2)
