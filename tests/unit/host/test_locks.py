"""The lock of one process among several."""

import os
import signal
from pathlib import Path

import pytest

from overhaul.host.locks import LockedError, locked


def test_a_lock_is_held_once_and_free_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        locked(path, purpose="The first"),
        pytest.raises(LockedError, match="The second"),
        locked(path, purpose="The second"),
    ):
        pass
    with locked(path, purpose="The third"):
        pass


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError), locked(path, purpose="Somebody"):
        raise ZeroDivisionError
    with locked(path, purpose="Somebody"):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(path, purpose="The child"):
            os.write(writer, b"x")
            signal.pause()
    assert os.read(reader, 1) == b"x"
    with pytest.raises(LockedError), locked(path, purpose="The parent"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(path, purpose="The parent"):
        pass
    os.close(reader)
    os.close(writer)
