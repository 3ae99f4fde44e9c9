"""The three-way merge of /etc: what the owner changed is carried over to the new defaults.

    old default    usr/etc of the deployment that is merged from
    current        its etc
    new default    usr/etc of the new commit

Each path that the owner changed, added or removed against the old default stays as the owner has it; everything else
follows the new default. A change is one of content, type, owner or mode, as real OSTree has it.

A *conflict* is a path that both sides changed, differently. The owner's side wins; the list is shown before anything
is written, so that the owner can stop. A conflict *blocks* when no side can win: a file here where a directory with
content is there. `plan_merge` only reads; the new side is read from the repository, before it is laid out.
"""

import filecmp
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.checkout import copy_with_attributes, dress_like, walk_tree
from overhaul.dialects.ostree.device.staging import stored_checksum
from overhaul.errors import DeviceError


class Change(StrEnum):
    """What the owner did with a path."""

    MODIFIED = "modified"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, kw_only=True)
class LocalChange:
    """One path that differs from the old default."""

    #: Relative to /etc.
    path: str
    change: Change
    is_directory: bool


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """One path that both sides changed."""

    path: str
    #: What the owner did.
    local: Change
    #: What the new default did.
    default: Change
    #: Whether the merge cannot go on.
    blocks: bool


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """What a merge will do."""

    changes: tuple[LocalChange, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    #: Sockets, pipes and devices, which are left behind.
    skipped: tuple[str, ...] = ()


class ConfigurationConflictError(DeviceError):
    """Both sides changed something in /etc, and neither can win or may."""

    def __init__(self, *, conflicts: Sequence[Conflict]) -> None:
        self.conflicts = tuple(conflicts)
        paths = ", ".join(f"/etc/{conflict.path}" for conflict in conflicts)
        if any(conflict.blocks for conflict in conflicts):
            sentence = f"The owner's changes and the new defaults exclude each other at {paths}; settle it there"
        else:
            sentence = (
                f'Both this device and the new default changed {paths}, and conflicts = "stop" is set; take the change '
                'here back, or write conflicts = "keep-local"'
            )
        super().__init__(f"{sentence}, then run again.")


#: A path of a default configuration: what it is, comparable between two commits.
_Default = Mapping[str, tuple[bool, bytes]]


def plan_merge(
    repository: BareRepository, *, merge_etc: Path, merge_usr_etc: Path, old_tree: bytes | None, new_tree: bytes | None
) -> MergePlan:
    """Return what becomes of the owner's changes.

    Args:
        repository: Holds both commits.
        merge_etc: The configuration in use.
        merge_usr_etc: Its default, as deployed.
        old_tree: The dirtree of that default, None when its commit had none.
        new_tree: The dirtree of the new default, None when it has none.
    """
    changes: list[LocalChange] = []
    skipped: list[str] = []
    if merge_etc.is_dir():
        _compare(merge_usr_etc, merge_etc, "", changes, skipped)
    old = _defaults(repository, old_tree)
    new = _defaults(repository, new_tree)
    conflicts = [found for change in changes if (found := _conflict(change, old, new, merge_etc)) is not None]
    return MergePlan(changes=tuple(changes), conflicts=tuple(conflicts), skipped=tuple(skipped))


def copy_tree(source: Path, destination: Path) -> None:
    """Copy a directory with everything in it but special files; `destination` must not exist."""
    destination.mkdir(0o700)
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        place = destination / entry.name
        if entry.is_dir(follow_symlinks=False):
            copy_tree(Path(entry.path), place)
        elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
            copy_with_attributes(Path(entry.path), place)
    dress_like(source, destination)


def apply_merge(plan: MergePlan, *, current: Path, new: Path) -> None:
    """Carry the changes of `plan` from the directory `current` over to `new`, which holds the new default.

    Raises:
        ConfigurationConflictError: A conflict blocks; nothing was changed.
    """
    blocking = [conflict for conflict in plan.conflicts if conflict.blocks]
    if blocking:
        raise ConfigurationConflictError(conflicts=blocking)
    for change in plan.changes:
        if change.change is Change.REMOVED:
            _remove(new / change.path)
    for change in plan.changes:
        if change.change is not Change.REMOVED:
            _carry_over(change, current=current, new=new)


def _compare(default: Path, current: Path, folder: str, changes: list[LocalChange], skipped: list[str]) -> None:
    here = {entry.name for entry in os.scandir(current / folder)}
    there = {entry.name for entry in os.scandir(default / folder)} if (default / folder).is_dir() else set()
    for name in sorted(here | there):
        path = f"{folder}/{name}" if folder else name
        if name not in here:
            was_directory = stat.S_ISDIR((default / path).lstat().st_mode)
            changes.append(LocalChange(path=path, change=Change.REMOVED, is_directory=was_directory))
            continue
        mode = (current / path).lstat().st_mode
        is_directory = stat.S_ISDIR(mode)
        if not (is_directory or stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            skipped.append(path)
            continue
        if name not in there:
            changes.append(LocalChange(path=path, change=Change.ADDED, is_directory=is_directory))
        elif not _is_same(default / path, current / path):
            changes.append(LocalChange(path=path, change=Change.MODIFIED, is_directory=is_directory))
        if is_directory:
            _compare(default, current, path, changes, skipped)


def _is_same(left: Path, right: Path) -> bool:
    one, two = left.lstat(), right.lstat()
    if (one.st_mode, one.st_uid, one.st_gid) != (two.st_mode, two.st_uid, two.st_gid):
        return False
    if stat.S_ISLNK(one.st_mode):
        return os.readlink(left) == os.readlink(right)
    if stat.S_ISREG(one.st_mode):
        return one.st_size == two.st_size and filecmp.cmp(left, right, shallow=False)
    return True


def _defaults(repository: BareRepository, tree: bytes | None) -> _Default:
    found: dict[str, tuple[bool, bytes]] = {}
    if tree is None:
        return found
    for folder, listed in walk_tree(repository, tree):
        prefix = f"{folder}/" if folder else ""
        found.update({f"{prefix}{file.name}": (False, file.checksum) for file in listed.files})
        found.update({f"{prefix}{entry.name}": (True, entry.meta) for entry in listed.directories})
    return found


def _conflict(change: LocalChange, old: _Default, new: _Default, current: Path) -> Conflict | None:
    before, after = old.get(change.path), new.get(change.path)
    # Where the owner made a file of a directory, or the reverse, and the default is what it was, the owner wins.
    is_other_kind = after is not None and after[0] != change.is_directory
    default_changed_kind = before is None or (after is not None and before[0] != after[0])
    blocks = change.change is not Change.REMOVED and is_other_kind and default_changed_kind
    if after == before:
        return None
    if after is None:
        # Something edited whose default is gone stays; removed on both sides is no conflict.
        if change.change is Change.REMOVED:
            return None
        return Conflict(path=change.path, local=change.change, default=Change.REMOVED, blocks=False)
    if change.is_directory and after[0] and change.change is not Change.REMOVED and before is None:
        return None  # both sides added the directory; what is in it is looked at by itself
    is_comparable = change.change is not Change.REMOVED and not is_other_kind and not change.is_directory
    if is_comparable and stored_checksum(current / change.path) == after[1]:
        return None  # both sides made the same change
    default = Change.ADDED if before is None else Change.MODIFIED
    return Conflict(path=change.path, local=change.change, default=default, blocks=blocks)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def _carry_over(change: LocalChange, *, current: Path, new: Path) -> None:
    source, place = current / change.path, new / change.path
    _ensure_parents(change.path, current=current, new=new)
    if not change.is_directory:
        _remove(place)
        copy_with_attributes(source, place)
        return
    if place.is_symlink() or (os.path.lexists(place) and not place.is_dir()):
        place.unlink()
    place.mkdir(exist_ok=True)
    dress_like(source, place)


def _ensure_parents(path: str, *, current: Path, new: Path) -> None:
    """Make directories that the new default no longer has; the owner's file needs them."""
    parts = path.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        folder = Path(*parts[:count])
        if not (new / folder).is_dir():
            (new / folder).mkdir()
            dress_like(current / folder, new / folder)
