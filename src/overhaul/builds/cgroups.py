"""Control groups for a build, where this process may make them: memory and processes of a whole tree, exactly.

With version 2 the worker's own group must be delegated to it (`Delegate=` in its unit); the worker moves into a leaf
below it (`settle`), because a group that holds processes can give its children no limits. With version 1 the memory
and pids hierarchies must be writable. Where neither is so, the group is empty and the sandbox's own watch is all
there is.
"""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "overhaul-build-"
_ATTEMPTS, _PAUSE_S = 100, 0.02
_FORGOTTEN_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Group:
    """Directories whose `cgroup.procs` a process enters; none where there are no groups to be had."""

    directories: tuple[Path, ...] = ()

    def out_of_memory(self) -> bool:
        """Tell whether the kernel killed something in it for want of memory."""
        return any(_killed(directory / name) for directory in self.directories for name in _EVENTS)


_EVENTS = ("memory.events", "memory.oom_control")


def settle(*, root: Path = _ROOT, own: Path | None = None) -> bool:
    """Move this process into a leaf of its delegated group, so that builds get groups beside it.

    False where there is nothing to do: version 1, no delegation, already in a leaf, or other processes in the group.
    systemd does the same with `DelegateSubgroup=`, from 254 on.
    """
    if not (root / "cgroup.controllers").exists():
        return False
    memberships = (own or Path("/proc/self/cgroup")).read_text().splitlines()
    place = next((line.removeprefix("0::").lstrip("/") for line in memberships if line.startswith("0::")), "")
    directory = root / place
    if not place or not _is_delegated(directory):
        return False
    leaf = directory / "worker"
    try:
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text("0")
        (directory / "cgroup.subtree_control").write_text("+memory +pids")
    except OSError:
        return False  # whoever shares the group keeps it, and the sandbox's own watch is there
    return True


def _is_delegated(directory: Path) -> bool:
    """Tell whether systemd says that what is below `directory` is ours."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


@contextmanager
def group(*, memory_bytes: int, processes: int, root: Path = _ROOT, own: Path | None = None) -> Iterator[Group]:
    """Yield a group with these limits; it is removed when the block ends, after everything in it has died."""
    own = own or Path("/proc/self/cgroup")
    made: list[Path] = []
    try:
        for parent, settings in _places(root, own, memory_bytes=memory_bytes, processes=processes):
            _remove_forgotten(parent)
            directory = parent / f"{_PREFIX}{secrets.token_hex(6)}"
            if _make(directory, settings):
                made.append(directory)
        yield Group(directories=tuple(made))
    finally:
        for directory in made:
            _remove(directory)


def _places(
    root: Path, own: Path, *, memory_bytes: int, processes: int
) -> Iterator[tuple[Path, Sequence[tuple[str, str]]]]:
    memberships = [line.split(":", 2) for line in own.read_text().splitlines()] if own.exists() else []
    if (root / "cgroup.controllers").exists():
        for number, _controllers, path in memberships:
            if number == "0":
                # Our own group holds processes, so its limits can only be set on siblings.
                parent = (root / path.lstrip("/")).parent
                settings = (
                    ("memory.max", str(memory_bytes)),
                    ("memory.swap.max", "0"),
                    ("pids.max", str(processes)),
                )
                yield parent, settings
        return
    for _number, controllers, path in memberships:
        for controller in controllers.split(","):
            place = root / controller / path.lstrip("/")
            if controller == "memory":
                yield place, (("memory.limit_in_bytes", str(memory_bytes)),)
            elif controller == "pids":
                yield place, (("pids.max", str(processes)),)


def _make(directory: Path, settings: Sequence[tuple[str, str]]) -> bool:
    try:
        directory.mkdir()
    except OSError:
        return False
    written = 0
    for name, value in settings:
        try:
            (directory / name).write_text(value)
            written += 1
        except OSError:
            continue  # a controller that was not delegated, or no accounting of swap
    if written == 0:
        _remove(directory)
    return written > 0


def _remove(directory: Path) -> None:
    """Remove a group; its last processes may still be dying."""
    for _attempt in range(_ATTEMPTS):
        try:
            os.rmdir(directory)  # noqa: PTH106 - its files are the kernel's, and are not removed first
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(_PAUSE_S)
        else:
            return


def _remove_forgotten(parent: Path) -> None:
    """Remove empty groups of workers that were killed; a new one may be empty too, so only old ones go."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if directory.stat().st_mtime < time.time() - _FORGOTTEN_S:
                os.rmdir(directory)  # noqa: PTH106 - see above; fails when it is in use


def _killed(events: Path) -> bool:
    try:
        lines = events.read_text().splitlines()
    except OSError:
        return False
    return any(name == "oom_kill" and count != "0" for name, _, count in (line.partition(" ") for line in lines))
