"""The three-way merge of a configuration, as values: what becomes of every path, and why.

    base      what the running release ships
    here      what this device has now
    release   what the new release ships

What only one side changed is taken from that side. What both changed is merged where that is certain (lines of texts,
records of account files, permissions beside contents); else the device keeps its own, and the release's file lies
beside it under its name and `.new`. A path is a conflict, too, where one side needs a directory and the other has none.

Nothing is read or written here: contents are asked for when two changed texts must be merged, from whoever has them.
The same function serves the preview and the update, so what the one promises is what the other does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from hashlib import sha256
from os import fsencode
from typing import Protocol, TypeVar

from overhaul.install.configuration.accounts import is_account_file, merge_accounts
from overhaul.install.configuration.lines import merge_lines
from overhaul.release.configuration import Node, NodeKind, Tree, parent_of

NEW_SUFFIX = b".new"


class Fate(StrEnum):
    """What becomes of a path."""

    #: Nobody changed it.
    UNCHANGED = "unchanged"
    #: Changed here; the device's own stays.
    KEPT = "kept"
    #: Changed by the release; the release's is taken.
    TAKEN = "taken"
    #: Changed by both in the same way.
    SAME = "same"
    #: Changed by both, and merged.
    MERGED = "merged"
    #: Changed by both; the device's own stays, a person should look.
    CONFLICT = "conflict"
    #: Here now, and not in the new system.
    LOST = "lost"


class Change(StrEnum):
    """What a side did with a path."""

    NONE = "none"
    ADDED = "added"
    MODIFIED = "modified"
    REMOVED = "removed"


class Source(StrEnum):
    """Where an object of the result comes from."""

    HERE = "here"
    RELEASE = "release"
    MERGED = "merged"


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One object of the result."""

    node: Node
    source: Source
    #: Of merged contents.
    data: bytes | None = None
    #: Where it lies in the tree it comes from.
    origin: bytes


@dataclass(frozen=True, kw_only=True)
class Item:
    """What becomes of one path that somebody changed."""

    #: Relative to /etc.
    path: bytes
    fate: Fate
    here: Change
    release: Change
    #: More about a conflict or a loss.
    reason: str = ""
    #: Where the release's own lies beside, if it does.
    beside: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The whole result, and what became of each path that somebody changed, by path."""

    nodes: Mapping[bytes, Placed]
    items: tuple[Item, ...]

    def of(self, *fates: Fate) -> tuple[Item, ...]:
        """Return the items with one of these fates."""
        return tuple(item for item in self.items if item.fate in fates)


class Contents(Protocol):
    """Whoever has the contents of files; None where they cannot be had."""

    def base(self, path: bytes, node: Node) -> bytes | None:
        """Return what the running release ships."""

    def here(self, path: bytes, node: Node) -> bytes | None:
        """Return what this device has."""

    def release(self, path: bytes, node: Node) -> bytes | None:
        """Return what the new release ships."""


@dataclass(frozen=True)
class _Decided:
    fate: Fate
    placed: Placed | None
    reason: str = ""
    #: Whether the release's own is laid beside.
    shows_release: bool = False


_T = TypeVar("_T")


def merge(
    base: Tree,
    here: Tree,
    release: Tree,
    *,
    contents: Contents,
    keep: Sequence[str] = (),
    follow: Sequence[str] = (),
) -> Merge:
    """Return what a device has after an update.

    Args:
        base: What the running release ships.
        here: What the device has.
        release: What the new release ships.
        contents: Asked for files that both sides changed.
        keep: Patterns of paths, beginning with `/etc/`, of which the device's own always stays.
        follow: The same of which the release's is always taken, because programs and not people make them.
    """
    return _Run(base, here, release, contents, is_among(keep), is_among(follow)).merge()


def is_among(patterns_of: Sequence[str]) -> Callable[[bytes], bool]:
    """Return whether one of the patterns is about a path or a directory that holds it."""
    patterns = [fsencode(pattern.removeprefix("/etc/").rstrip("/")) for pattern in patterns_of]

    def matches(path: bytes) -> bool:
        while path:
            if any(fnmatchcase(path, pattern) for pattern in patterns):
                return True
            path = parent_of(path)
        return False

    return matches


@dataclass
class _Run:
    base: Tree
    here: Tree
    release: Tree
    contents: Contents
    is_kept: Callable[[bytes], bool]
    is_followed: Callable[[bytes], bool]
    nodes: dict[bytes, Placed] = field(default_factory=dict)
    items: dict[bytes, Item] = field(default_factory=dict)
    beside: dict[bytes, Node] = field(default_factory=dict)

    def merge(self) -> Merge:
        # Bytewise, a directory comes before what is in it.
        for path in sorted({*self.base, *self.here, *self.release}):
            decided = self._decide(path)
            placed = decided.placed
            if decided.fate is not Fate.UNCHANGED:
                self._note(path, decided.fate, decided.reason)
            if placed is not None and path and not self._make_room(path, placed.source):
                placed = None
            if placed is not None:
                self.nodes[path] = placed
            if decided.shows_release and path in self.release:
                self.beside[path] = self.release[path]
        for path, node in self.beside.items():
            self._lay_beside(path, node)
        return Merge(nodes=self.nodes, items=tuple(self.items[path] for path in sorted(self.items)))

    def _decide(self, path: bytes) -> _Decided:
        base, here, release = self.base.get(path), self.here.get(path), self.release.get(path)
        if here == release:
            return _Decided(Fate.UNCHANGED if base == here else Fate.SAME, self._from(Source.RELEASE, path))
        if here is not None and self.is_kept(path):
            return _Decided(Fate.KEPT, self._from(Source.HERE, path))
        if self.is_followed(path):
            return _Decided(Fate.TAKEN, self._from(Source.RELEASE, path), "follows the release")
        if here == base:
            return _Decided(Fate.TAKEN, self._from(Source.RELEASE, path))
        if release == base:
            return _Decided(Fate.KEPT, self._from(Source.HERE, path))
        return self._decide_both(path, base, here, release)

    def _decide_both(self, path: bytes, base: Node | None, here: Node | None, release: Node | None) -> _Decided:
        """Decide about a path that both sides changed, differently."""
        if here is None:
            return _Decided(Fate.CONFLICT, None, "removed here, changed by the release", shows_release=True)
        if release is None:
            return _Decided(Fate.CONFLICT, self._from(Source.HERE, path), "changed here, removed by the release")
        if here.kind is not release.kind:
            reason = f"a {here.kind} here, a {release.kind} in the release"
            return _Decided(Fate.CONFLICT, self._from(Source.HERE, path), reason, shows_release=True)
        return self._merge_objects(path, base, here, release)

    def _merge_objects(self, path: bytes, base: Node | None, here: Node, release: Node) -> _Decided:
        """Merge two objects of one kind that both differ from the base and from each other."""
        before = base if base is not None and base.kind is here.kind else None
        mode = _settle(None if before is None else before.mode, here.mode, release.mode)
        owner = _settle(None if before is None else _owner(before), _owner(here), _owner(release))
        xattrs = _settle(None if before is None else before.xattrs, here.xattrs, release.xattrs)
        if mode is None or owner is None or xattrs is None:
            return _Decided(
                Fate.CONFLICT, self._from(Source.HERE, path), "other permissions on both sides", shows_release=True
            )
        content = _settle(None if before is None else _content(before), _content(here), _content(release))
        data = None
        if content is None:
            data = self._merge_contents(path, before, here, release)
            if data is None:
                reason = "another target on both sides" if here.kind is NodeKind.LINK else "changed on both sides"
                return _Decided(Fate.CONFLICT, self._from(Source.HERE, path), reason, shows_release=True)
            content = (len(data), sha256(data).digest(), b"")
        size, digest, target = content
        node = Node(
            kind=here.kind,
            mode=mode,
            uid=owner[0],
            gid=owner[1],
            xattrs=xattrs,
            size=size,
            sha256=digest,
            target=target,
        )
        source = Source.MERGED if data is not None else Source.HERE
        if data is None and _content(here) != content:
            source = Source.RELEASE
            data = self.contents.release(path, release) if here.kind is NodeKind.FILE else None
            if data is None and here.kind is NodeKind.FILE:
                return _Decided(Fate.CONFLICT, self._from(Source.HERE, path), "other permissions here")
        return _Decided(Fate.MERGED, Placed(node=node, source=source, data=data, origin=path))

    def _merge_contents(self, path: bytes, base: Node | None, here: Node, release: Node) -> bytes | None:
        if base is None or here.kind is not NodeKind.FILE:
            return None
        ours = self.contents.here(path, here)
        if ours is None or b"\0" in ours:
            return None
        old = self.contents.base(path, base)
        new = None if old is None else self.contents.release(path, release)
        if old is None or new is None:
            return None
        return merge_accounts(path, old, ours, new) if is_account_file(path) else merge_lines(old, ours, new)

    def _from(self, source: Source, path: bytes) -> Placed | None:
        node = (self.here if source is Source.HERE else self.release).get(path)
        return None if node is None else Placed(node=node, source=source, origin=path)

    def _make_room(self, path: bytes, source: Source) -> bool:
        """See to it that what holds `path` is a directory; tell whether it can be one."""
        parent = parent_of(path)
        held = self.nodes.get(parent)
        if held is not None and held.node.kind is NodeKind.DIRECTORY:
            return True
        side = self.release if source is Source.RELEASE else self.here
        blocking = self.here.get(parent) if source is Source.RELEASE else None
        if blocking is not None and blocking.kind is not NodeKind.DIRECTORY:
            self._note(path, Fate.CONFLICT, f"hidden, because /etc/{_shown(parent)} is a {blocking.kind} here")
            return False
        if parent and not self._make_room(parent, source):
            self._note(path, Fate.CONFLICT, "hidden by something else of this device")
            return False
        if held is not None:
            # The release has something else where the device's own things need a directory.
            self._note(parent, Fate.CONFLICT, "the directory is needed for what was changed here")
            self.beside[parent] = held.node
        elif source is Source.RELEASE:
            self._note(parent, Fate.TAKEN, "removed here, and needed for what the release adds")
        else:
            self._note(parent, Fate.KEPT, "removed by the release, and needed for what was changed here")
        self.nodes[parent] = Placed(node=side[parent], source=source, origin=parent)
        return True

    def _lay_beside(self, path: bytes, node: Node) -> None:
        """Put the release's own beside a conflict, where there is room for it."""
        place = path + NEW_SUFFIX
        held = self.nodes.get(parent_of(path))
        own = self.here.get(place)
        is_free = place not in self.release and place not in self.base and (own is None or own.kind is NodeKind.FILE)
        if node.kind is NodeKind.DIRECTORY or held is None or held.node.kind is not NodeKind.DIRECTORY or not is_free:
            return
        data = self.contents.release(path, node) if node.kind is NodeKind.FILE else None
        if node.kind is NodeKind.FILE and data is None:
            return
        self.nodes[place] = Placed(node=node, source=Source.MERGED, data=data, origin=path)
        self.items[path] = replace(self.items[path], beside=place)
        if place in self.items:
            self._note(place, Fate.TAKEN, "written again for this update")

    def _note(self, path: bytes, fate: Fate, reason: str = "") -> None:
        base, here, release = self.base.get(path), self.here.get(path), self.release.get(path)
        self.items[path] = Item(
            path=path, fate=fate, here=_change(base, here), release=_change(base, release), reason=reason
        )


def _owner(node: Node) -> tuple[int, int]:
    return node.uid, node.gid


def _content(node: Node) -> tuple[int, bytes | None, bytes]:
    return node.size, node.sha256, node.target


def _settle(base: _T | None, here: _T, release: _T) -> _T | None:
    """Return what both sides together make of a value, or None where they disagree."""
    if here in (base, release):
        return release
    return here if release == base else None


def _change(base: Node | None, side: Node | None) -> Change:
    if base == side:
        return Change.NONE
    if base is None:
        return Change.ADDED
    return Change.REMOVED if side is None else Change.MODIFIED


def _shown(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
