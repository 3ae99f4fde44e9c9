"""Whether a run of the static server could find anything to do: told by the times of all files, without reading them.

A run that ended well notes in `.static-state.json`, beside the tree, what the tree was made of and what it is: inode,
size and both times of each directory and manifest of the pool, of each answer, of the configuration and of this
program. While all of them are the same, the next run would write nothing. Whatever else is the case, from a changed
byte to a note that cannot be read, that run does its whole work, so a wrong note can cost time and nothing else.

Times tell two writes apart only when they are not too close together: nothing is noted that changed just before.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from overhaul.host.files import replace_bytes

_NAME = ".static-state.json"
_FORMAT = 1
#: What changed so shortly before it was looked at may change again without showing it in its times.
UNSETTLED_NS = 50_000_000

#: Inode, size, and the times of content and inode in nanoseconds; None of what is not there.
Stamp = tuple[int, int, int, int] | None


def is_unchanged(root: Path, configuration: Path) -> bool:
    """Whether the tree in `root` is what the last run noted, and everything it was made of too."""
    try:
        state = json.loads((root / _NAME).read_bytes())
        return bool(
            state["format"] == _FORMAT
            and state["program"] == _program()
            and state["configuration"] == _digest(configuration)
            and _all_same(state["pool"], state["inputs"])
            and _all_same(str(root), state["outputs"])
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def note(
    root: Path,
    configuration: Path,
    *,
    pool: Path,
    inputs: Mapping[str, Stamp],
    present: Iterable[str],
    absent: Iterable[str],
) -> None:
    """Note what the tree in `root` was made of; nothing is noted while any of it may still be changing.

    Args:
        root: The tree.
        configuration: The file that was followed.
        pool: The pool's directory.
        inputs: Everything of the pool that was looked at, as it was then; relative to it.
        present: The files of the tree.
        absent: Files that must not be in it.
    """
    begun_ns = time.time_ns()
    outputs: dict[str, Stamp] = {path: stamp_of(f"{root}/{path}") for path in present}
    newest = max((max(stamp[2], stamp[3]) for stamp in outputs.values() if stamp is not None), default=0)
    if None in outputs.values() or newest >= begun_ns - UNSETTLED_NS:
        forget(root)
        return
    state = {
        "format": _FORMAT,
        "program": _program(),
        "configuration": _digest(configuration),
        "pool": str(pool),
        "inputs": inputs,
        "outputs": {**outputs, **dict.fromkeys(absent)},
    }
    replace_bytes(root / _NAME, json.dumps(state).encode(), mode=0o600)


def forget(root: Path) -> None:
    """Take the note back."""
    (root / _NAME).unlink(missing_ok=True)


def stamp_of(path: str) -> Stamp:
    """Return the stamp of what is at `path`."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _all_same(root: str, stamps: Mapping[str, list[int] | None]) -> bool:
    stat = os.stat
    for name, stamp in stamps.items():
        try:
            status = stat(f"{root}/{name}")
        except FileNotFoundError:
            if stamp is None:
                continue
            return False
        if stamp != [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]:
            return False
    return True


def _digest(configuration: Path) -> str:
    return sha256(configuration.read_bytes()).hexdigest()


def _program() -> list[list[object]]:
    """Return what tells this version of the dialect from every other."""
    with os.scandir(os.path.dirname(__file__)) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(".py")]
    return sorted([name, status.st_size, status.st_mtime_ns] for name, status in found)
