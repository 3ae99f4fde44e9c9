"""Questions and answers between two programs of one machine, also when one of them misbehaves."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overhaul.host import exchange


@contextmanager
def _answering(path: Path, *, question_within_s: float = 30.0) -> Iterator[None]:
    server = exchange.Answering(path, bytes.upper, at_most=100, question_within_s=question_within_s)
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
        assert exchange.ask(path, b"how", timeout_s=30, at_most=100) == b"HOW"
        assert path.stat().st_mode & 0o777 == 0o660
    assert not path.exists()
    assert not exchange.answers(path)
    with pytest.raises(OSError, match="No such file"):
        exchange.ask(path, b"how", timeout_s=30, at_most=100)


def test_who_asks_too_much_stalls_or_hangs_up_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with _answering(path, question_within_s=0.01):
        assert exchange.ask(path, b"x" * 101, timeout_s=30, at_most=100) == b""
        with socket.socket(socket.AF_UNIX) as stalled, socket.socket(socket.AF_UNIX) as gone:
            stalled.connect(str(path))
            stalled.sendall(b"half a question")
            gone.connect(str(path))
            gone.close()
            assert exchange.ask(path, b"how", timeout_s=30, at_most=100) == b"HOW"


def test_an_answer_without_end_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with _answering(path), pytest.raises(OSError, match="more than 2 bytes"):
        exchange.ask(path, b"how", timeout_s=30, at_most=2)
