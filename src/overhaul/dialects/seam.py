"""What every dialect's publisher offers to `publishing`: two acts, and the promise that holds between them.

*Write* stores everything of a release under final names that nothing points to yet. *Point* moves the dialect's
small pointers (swupd's `latest`, OSTree's refs and summary, atomupd's JSON) so that they show exactly what the
channels' policies open to every device, because these clients cannot read a policy. Pointing is derived from the
policies and not remembered, so it can be repeated at any time: after a publish, a promotion, a finished rollout or
a recall, and by `overhaul repository refresh`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from overhaul.content.tree import TreeEntry
from overhaul.progress import Progress
from overhaul.release.record import ReleaseId


@dataclass(frozen=True, kw_only=True)
class DialectSource:
    """What is published, as a dialect may read it."""

    release: ReleaseId
    #: The image that slots will hold.
    image: Path
    #: The tree it was made of, or that it holds; None where no dialect of this publish asked for one.
    tree: Path | None
    #: All of the tree, by bytewise path; empty without one.
    entries: tuple[TreeEntry, ...]
    #: The only time that what is written may hold besides the tree's own; seconds since 1970 UTC.
    timestamp: int


class DialectWriter(Protocol):
    """One dialect's side of one publish."""

    def take(self, entry: TreeEntry, content: memoryview) -> None:
        """Take a regular file of the tree while its bytes are in memory; called from several threads at once.

        Each file comes once, in no particular order. What is not a file stands in `DialectSource.entries`.
        """

    def write(self) -> None:
        """Store what was taken and everything else of the release, so that `point` may point at it; durable."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What one channel opens to every device of a variant and architecture."""

    channel: str
    variant: str
    arch: str
    #: The lowest first; a recalled release, or one that is only partly rolled out, is not among them.
    releases: tuple[ReleaseId, ...]
    #: Those of `releases` that devices below must not jump over; only some dialects can say so to their clients.
    checkpoints: tuple[ReleaseId, ...] = ()


class Dialect(Protocol):
    """The publisher of one dialect for one product."""

    #: As it stands in the configuration: `atomupd`, `ostree`, `swupd`.
    name: str
    needs_tree: bool
    #: Whether its clients are shown releases below the newest that is open to them, and may want one by its name.
    shows_older: bool

    def check(self, release: ReleaseId) -> None:
        """Refuse, with a sentence, what this dialect cannot publish, before hours of work."""

    def writer(self, source: DialectSource, *, work: Path, workers: int, progress: Progress) -> DialectWriter | None:
        """Begin to publish; None when the release is published in this dialect already.

        A run that died is run again with the same source; `work` is an empty directory on the same file system
        as the public tree, removed afterwards.
        """

    def point(self, opened: Sequence[Opened], *, recalled: Mapping[ReleaseId, str]) -> bool:
        """Make the pointers show what is opened; return whether anything changed for devices.

        `recalled` names the reason. Clients that refuse to go back get the newest opened content again under a
        higher name.
        """


@runtime_checkable
class SignedDialect(Protocol):
    """A dialect some of whose clients can check signatures of this repository."""

    def answers(self, opened: Sequence[Opened], *, recalled: Mapping[ReleaseId, str]) -> bytes | None:
        """Return what `point` will show for the same arguments, as one file to be signed before; None for nothing.

        It changes nothing, and reads only what `write` has stored.
        """
