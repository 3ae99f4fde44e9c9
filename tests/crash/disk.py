"""A disk that loses power: what may be on it after any prefix of recorded operations.

Promised by the operating system, and nothing more is believed here:

* `fsync` and `fdatasync` of a file make durable what was written to it and its length; not its name.
* `fsync` of a directory makes the names in it durable: those that were made, moved there, and removed.
* Everything else that was issued since may be there or not, each operation by itself and in any order: a rename
  without the bytes of the file it names, a later write without an earlier one, a removal before a creation.
* A write that was not synced may be torn between sectors of 512 bytes, any of them; or only the new length of the
  file may be there, with zeros in the place of the bytes.
* A rename is one operation, as on every file system with a journal. In a directory that is named as *weak* (FAT) its
  two halves may come apart.

This is weaker than any file system in use, so what survives here survives on all of them.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

SECTOR = 512
ROOT = 0


@dataclass(frozen=True)
class Write:
    """Bytes into a file."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resize:
    """A new length of a file."""

    inode: int
    size: int


@dataclass(frozen=True)
class Naming:
    """Names that change together: (directory, name, what it names from now on or None)."""

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True)
class Sync:
    """All that was done to a file or directory becomes durable."""

    inode: int


@dataclass(frozen=True)
class SyncAll:
    """Everything becomes durable."""


Operation = Write | Resize | Naming | Sync | SyncAll


@dataclass(frozen=True)
class Fate:
    """What became of an operation that was not durable."""

    is_kept: bool
    #: For a write: the sectors that reached the medium, None for all of them.
    sectors: frozenset[int] | None = None

    def __str__(self) -> str:
        if not self.is_kept:
            return "lost"
        if self.sectors is None:
            return "kept"
        return f"torn, sectors {sorted(self.sectors)} kept" if self.sectors else "only its length kept"


KEPT = Fate(is_kept=True)
LOST = Fate(is_kept=False)
HOLLOW = Fate(is_kept=True, sectors=frozenset())


@dataclass(frozen=True)
class Content:
    """The bytes of a file, or where a symbolic link leads."""

    data: bytes
    is_link: bool = False

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the bytes."""
        return hashlib.sha256(b"link" * self.is_link + self.data).digest()


#: Path to content; None for a directory.
Tree = Mapping[str, Content | None]


@dataclass
class Recording:
    """A tree as it was, durably, and what was done to it since; `ROOT` is its top directory."""

    #: Inode to what it held at first; None for a directory. What is made later begins empty.
    inodes: dict[int, Content | None]
    names: dict[int, dict[str, int]]
    operations: list[Operation] = field(default_factory=list)
    #: What a person would call an operation.
    labels: list[str] = field(default_factory=list)
    #: Numbers of operations on files that decide nothing; they are spared when states are drawn.
    scratch: set[int] = field(default_factory=set)
    _contents: dict[tuple[object, ...], Content] = field(default_factory=dict)

    @classmethod
    def of(cls, top: Path) -> "Recording":
        """Return an empty recording that begins with what is below `top` now."""
        recording = cls(inodes={ROOT: None}, names={})
        recording._take(top, ROOT)
        return recording

    def _take(self, directory: Path, inode: int) -> None:
        children = self.names.setdefault(inode, {})
        for path in sorted(directory.iterdir()):
            number = children[path.name] = len(self.inodes)
            if path.is_symlink():
                self.inodes[number] = Content(str(path.readlink()).encode(), is_link=True)
            elif path.is_dir():
                self.inodes[number] = None
                self._take(path, number)
            else:
                self.inodes[number] = Content(path.read_bytes())

    def add(self, operation: Operation, label: str) -> None:
        """Note one more operation."""
        self.operations.append(operation)
        self.labels.append(label)

    def essential(self) -> "Recording":
        """Return the recording without what was done to files that decide nothing."""
        kept = [number for number in range(len(self.operations)) if number not in self.scratch]
        return Recording(
            inodes=self.inodes,
            names=self.names,
            operations=[self.operations[number] for number in kept],
            labels=[self.labels[number] for number in kept],
        )

    def durable_from(self) -> list[int]:
        """Return for each operation the number of operations after which it surely survives."""
        found = [len(self.operations) + 1] * len(self.operations)
        waiting: dict[int, set[int]] = {}
        touched: dict[int, set[int]] = {}
        for number, operation in enumerate(self.operations):
            match operation:
                case Write(inode=inode) | Resize(inode=inode):
                    touched[number] = {inode}
                case Naming(changes=changes):
                    # A file that moves between directories is durable with the name it got; a name that is only
                    # removed, with the directory it was in.
                    gained = {directory for directory, _name, target in changes if target is not None}
                    touched[number] = gained or {directory for directory, _name, _target in changes}
                case Sync(inode=inode):
                    found[number] = number + 1
                    for earlier in waiting.pop(inode, set()):
                        touched[earlier].discard(inode)
                        if not touched[earlier]:
                            found[earlier] = number + 1
                    continue
                case SyncAll():
                    found[number] = number + 1
                    for earlier in set().union(*waiting.values()) if waiting else ():
                        found[earlier] = number + 1
                    waiting.clear()
                    continue
            for inode in touched[number]:
                waiting.setdefault(inode, set()).add(number)
        return found

    def tree(self, point: int, fates: Mapping[int, Fate]) -> dict[str, Content | None]:
        """Return what is there when the first `point` operations were issued and `fates` befell some of them."""
        names = {directory: dict(children) for directory, children in self.names.items()}
        changes: dict[int, list[tuple[int, Fate]]] = {}
        for number, operation in enumerate(self.operations[:point]):
            fate = fates.get(number, KEPT)
            if not fate.is_kept:
                continue
            match operation:
                case Write(inode=inode) | Resize(inode=inode):
                    changes.setdefault(inode, []).append((number, fate))
                case Naming(changes=named):
                    for directory, name, target in named:
                        if target is None:
                            names.setdefault(directory, {}).pop(name, None)
                        else:
                            names.setdefault(directory, {})[name] = target
        found: dict[str, Content | None] = {}
        pending = [(ROOT, "")]
        while pending:
            directory, prefix = pending.pop()
            for name, inode in names.get(directory, {}).items():
                path = f"{prefix}{name}"
                if self.inodes[inode] is None:
                    found[path] = None
                    pending.append((inode, f"{path}/"))
                else:
                    found[path] = self._content(inode, changes.get(inode, ()))
        return found

    def _content(self, inode: int, changes: Sequence[tuple[int, Fate]]) -> Content:
        first = self.inodes[inode]
        assert first is not None
        if not changes:
            return first
        key = (inode, tuple(changes))
        if key not in self._contents:
            data = bytearray(first.data)
            for number, fate in changes:
                _apply(data, self.operations[number], fate)
            self._contents[key] = Content(bytes(data), is_link=first.is_link)
            if len(self._contents) > 2000:
                self._contents.pop(next(iter(self._contents)))
        return self._contents[key]


def _apply(data: bytearray, operation: Operation, fate: Fate) -> None:
    if isinstance(operation, Resize):
        del data[operation.size :]
        data.extend(bytes(operation.size - len(data)))
        return
    assert isinstance(operation, Write)
    end = operation.offset + len(operation.data)
    data.extend(bytes(max(0, end - len(data))))
    if fate.sectors is None:
        data[operation.offset : end] = operation.data
        return
    for sector in fate.sectors:
        begin, stop = max(operation.offset, sector * SECTOR), min(end, (sector + 1) * SECTOR)
        data[begin:stop] = operation.data[begin - operation.offset : stop - operation.offset]


def sectors_of(operation: Operation) -> range:
    """Return the numbers of the sectors that a write touches; none for what is no write."""
    if not isinstance(operation, Write) or not operation.data:
        return range(0)
    return range(operation.offset // SECTOR, -(-(operation.offset + len(operation.data)) // SECTOR))


@dataclass(frozen=True)
class PowerCut:
    """A moment, and what became of all that was not durable by then."""

    point: int
    fates: Mapping[int, Fate]

    def told(self, recording: Recording) -> str:
        """Return the last operations and the fates, for a person who must find the mistake."""
        lines = [f"the power was cut after {self.point} of {len(recording.operations)} operations"]
        for number in range(max(0, self.point - 12), self.point):
            lines.append(f"  {number:4} {recording.labels[number]}")
        lines += [
            f"  {number:4} {recording.labels[number]}: {fate}"
            for number, fate in sorted(self.fates.items())
            if number not in recording.scratch
        ]
        return "\n".join(lines)


def power_cuts(recording: Recording, *, seed: int, samples: int) -> Iterator[PowerCut]:
    """Yield power cuts: for every prefix the telling ones, one after the other, then `samples` drawn at random.

    Many lead to the same tree; who materialises them leaves those out.
    """
    open_at = unsynced(recording)
    for point, unsure in enumerate(open_at):
        yield from _telling(recording, point, unsure)
    chance = random.Random(seed)
    weights = [sum(_weight(recording, number) for number in unsure) for unsure in open_at]
    for _ in range(samples if any(weights) else 0):
        (point,) = chance.choices(range(len(open_at)), weights)
        yield _drawn(recording, point, open_at[point], chance)


def unsynced(recording: Recording) -> list[list[int]]:
    """Return for each point the operations before it that a power cut there may undo."""
    durable = recording.durable_from()
    return [
        [number for number in range(point) if durable[number] > point] for point in range(len(recording.operations) + 1)
    ]


def _weight(recording: Recording, number: int) -> int:
    """Return in how many ways an operation can come out, roughly and at most 64."""
    if number in recording.scratch:
        return 0
    return min(64, 1 + len(sectors_of(recording.operations[number])))


def _telling(recording: Recording, point: int, unsure: Sequence[int]) -> Iterator[PowerCut]:
    yield PowerCut(point, {})
    if not unsure:
        return
    lost = dict.fromkeys(unsure, LOST)
    yield PowerCut(point, lost)
    scratch = [number for number in unsure if number in recording.scratch]
    yield PowerCut(point, dict.fromkeys(scratch, LOST))
    for place, number in enumerate(unsure):
        if number in recording.scratch:
            continue
        yield PowerCut(point, {number: LOST})
        yield PowerCut(point, {**lost, number: KEPT})
        yield PowerCut(point, dict.fromkeys(unsure[place:], LOST))
        yield PowerCut(point, dict.fromkeys(unsure[:place], LOST))
        for torn in _tears(recording.operations[number], all_of_them=number == point - 1):
            yield PowerCut(point, {number: torn})
            yield PowerCut(point, {**lost, number: torn})


def _tears(operation: Operation, *, all_of_them: bool) -> Iterator[Fate]:
    sectors = sectors_of(operation)
    if sectors:
        yield HOLLOW
    if len(sectors) < 2:
        return
    places = range(1, len(sectors)) if all_of_them else (1, len(sectors) // 2, len(sectors) - 1)
    for place in places:
        yield Fate(is_kept=True, sectors=frozenset(sectors[:place]))
        yield Fate(is_kept=True, sectors=frozenset(sectors[place:]))


def _drawn(recording: Recording, point: int, unsure: Sequence[int], chance: random.Random) -> PowerCut:
    share, scratch = chance.choice((0.1, 0.5, 0.9)), chance.choice((KEPT, LOST, None))
    fates: dict[int, Fate] = {}
    for number in unsure:
        sectors = sectors_of(recording.operations[number])
        if scratch is not None and number in recording.scratch:
            fates[number] = scratch
        elif sectors and chance.random() < (0.5 if len(sectors) < 8 else 0.8):
            kept = chance.choice((0.05, 0.5, 0.95))
            fates[number] = Fate(
                is_kept=True, sectors=frozenset(sector for sector in sectors if chance.random() < kept)
            )
        else:
            fates[number] = KEPT if chance.random() < share else LOST
    return PowerCut(point, fates)


def tree_digest(tree: Tree, *, without: Iterable[str] = ()) -> bytes:
    """Return what tells one tree from another; paths that begin with one of `without` do not count."""
    left_out = tuple(without)
    whole = hashlib.sha256()
    for path, content in sorted(tree.items()):
        if left_out and path.startswith(left_out):
            continue
        whole.update(path.encode() + b"\0" + (b"directory" if content is None else content.digest))
    return whole.digest()


class Place:
    """A directory in which one tree after the other is laid out; it may be changed in between."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def lay(self, tree: Tree) -> None:
        """Make the directory hold `tree` and nothing else."""
        if self.top.exists():
            _clear(self.top)
        self.top.mkdir(parents=True, exist_ok=True)
        for path, content in sorted(tree.items()):
            target = self.top / path
            if content is None:
                target.mkdir()
            elif content.is_link:
                target.symlink_to(content.data.decode())
            else:
                target.write_bytes(content.data)


def _clear(directory: Path) -> None:
    import shutil

    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
