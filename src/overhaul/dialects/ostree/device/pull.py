"""Bringing a commit of a remote into the device's repository: a static delta first, then what is missing.

    head       what the branch names; the commit with its signatures, verified before anything is stored
    delta      the cheapest way, when the publisher made one from what the device has
    walk       every name of the tree is looked up here; what is missing is fetched, many requests at once
    publish    all objects take their names together, durably; then the ref moves

Killed at any moment, the next pull takes over what was verified already. A damaged delta costs time and nothing
else: each object is checked against the tree that was signed, and what a delta did not bring comes by itself.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from overhaul.dialects.ostree.device.barerepo import BareRepository, extension, metadata_limit, object_key
from overhaul.dialects.ostree.device.body import BodyReader
from overhaul.dialects.ostree.device.crew import Crew
from overhaul.dialects.ostree.device.deltas import apply_delta, choose_delta
from overhaul.dialects.ostree.device.head import (
    Head,
    VerifiedCommit,
    fetch_commit,
    fetch_head,
)
from overhaul.dialects.ostree.device.remote import Remote
from overhaul.dialects.ostree.device.seen import SeenSummary, demands
from overhaul.dialects.ostree.device.staging import Staging
from overhaul.dialects.ostree.errors import DeltaSourceMissingError
from overhaul.dialects.ostree.filez import open_filez
from overhaul.dialects.ostree.layout import object_path
from overhaul.dialects.ostree.objects import (
    ObjectName,
    ObjectType,
    check_object,
    decode_dirmeta,
    decode_dirtree,
)
from overhaul.errors import OverhaulError, TrustError
from overhaul.progress import Progress, Silence
from overhaul.transfer.fetcher import Fetcher, RefusedStatusError, Request
from overhaul.transfer.fetching import fetch_bytes

#: File objects that one thread fetches in a row.
_FILES_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class PullSettings:
    """What a pull may use."""

    #: Requests under way at once.
    connections: int = 8
    uses_deltas: bool = True
    #: Free space that is left alone.
    reserve_bytes: int = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a pull stands on: the network, the boot, the disk."""

    open_fetcher: Callable[[], Fetcher]
    boot_id: str
    free_space: Callable[[Path], int]
    progress: Progress = field(default_factory=Silence)


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull brought."""

    commit: str
    timestamp: int
    version: str
    #: Whether the commit was here before, whole.
    was_here: bool
    #: The commit that the delta began at, `scratch`, or empty without a delta.
    delta_from: str = ""
    #: Why a delta that was there could not be used.
    delta_problem: str = ""
    #: Objects that were fetched one by one.
    loose_objects: int = 0
    #: For the next poll; None when the server does not name its summary.
    seen: SeenSummary | None = None


def pull(
    repository: BareRepository,
    remote: Remote,
    branch: str,
    *,
    surroundings: Surroundings,
    settings: PullSettings,
    known_timestamp: int | None,
    bases: Iterable[str] = (),
    refused: Callable[[str], str | None] = lambda _commit: None,
    seen: SeenSummary | None = None,
) -> Pulled:
    """Bring what the branch names into the repository and let `REMOTE:BRANCH` name it.

    Args:
        repository: The device's.
        remote: Where to pull from.
        branch: The branch there.
        surroundings: Network, boot and disk.
        settings: What the pull may use.
        known_timestamp: Older commits are refused; None for no limit.
        bases: Commits that are here whole, the most likely base of a delta first.
        refused: Tells why a commit is not wanted; it is not fetched then.
        seen: What the last pull said, to ask only whether it still holds.

    Raises:
        RefusedCommitError: It is one this device will not take again.
        NoSpaceError: There is no room for it.
    """
    fetcher = surroundings.open_fetcher()
    head = find_head(fetcher, repository, remote, branch, known_timestamp=known_timestamp, refused=refused, seen=seen)
    if isinstance(head, Pulled):
        return head
    name = ObjectName(ObjectType.COMMIT, bytes.fromhex(head.commit))
    with repository.locked(shared=True):
        local = repository.read(name) if repository.has(name) else None
        verified = fetch_commit(fetcher, remote, head, known_timestamp=known_timestamp, local=local)
        is_whole = local is not None and not repository.is_partial(head.commit)
        if is_whole and repository.resolve(remote.name, branch) == head.commit:
            return _pulled(verified, was_here=True, seen=seen_now(remote, head))
        staging = Staging(
            repository,
            boot_id=surroundings.boot_id,
            reserve_bytes=settings.reserve_bytes,
            free_space=surroundings.free_space,
        )
        work = _Pull(
            repository=repository,
            remote=remote,
            head=head,
            verified=verified,
            staging=staging,
            surroundings=surroundings,
            settings=settings,
        )
        if not is_whole:
            if settings.uses_deltas:
                work.take_delta(fetcher, [base for base in bases if base != head.commit])
            work.take_objects()
        work.publish()
        repository.set_ref(remote.name, branch, head.commit)
    return _pulled(
        verified,
        was_here=is_whole,
        delta_from=work.delta_from,
        delta_problem=work.delta_problem,
        loose_objects=work.loose_objects,
        seen=seen_now(remote, head),
    )


def find_head(
    fetcher: Fetcher,
    repository: BareRepository,
    remote: Remote,
    branch: str,
    *,
    known_timestamp: int | None,
    refused: Callable[[str], str | None],
    seen: SeenSummary | None,
) -> Head | Pulled:
    """Return what the branch names, or what there is to say when that is as before, here, and may be taken.

    Raises:
        RefusedCommitError: It names a commit that this device will not take again.
    """
    head = fetch_head(fetcher, remote, branch, seen=seen)
    _check_refused(head, remote, refused)
    if not head.is_unchanged:
        return head
    name = ObjectName(ObjectType.COMMIT, bytes.fromhex(head.commit))
    is_pulled = repository.resolve(remote.name, head.branch) == head.commit and repository.has(name)
    if is_pulled and not repository.is_partial(head.commit):
        commit = repository.commit(head.commit)
        if known_timestamp is None or commit.timestamp >= known_timestamp:
            return Pulled(
                commit=head.commit, timestamp=commit.timestamp, version=commit.version or "", was_here=True, seen=seen
            )
    head = fetch_head(fetcher, remote, branch)
    _check_refused(head, remote, refused)
    return head


def _check_refused(head: Head, remote: Remote, refused: Callable[[str], str | None]) -> None:
    reason = refused(head.commit)
    if reason is not None:
        raise RefusedCommitError(commit=head.commit, reason=reason, seen=seen_now(remote, head))


def seen_now(remote: Remote, head: Head) -> SeenSummary | None:
    """Return what the next poll can ask about, once it is known what the head comes to."""
    if not head.etag:
        return None
    return SeenSummary(url=remote.url, branch=head.branch, etag=head.etag, commit=head.commit, demands=demands(remote))


class RefusedCommitError(OverhaulError):
    """A commit that was tried on this device and did not stay up."""

    def __init__(self, *, commit: str, reason: str, seen: SeenSummary | None = None) -> None:
        self.commit = commit
        self.reason = reason
        #: For the next poll, as in `Pulled`.
        self.seen = seen
        super().__init__(f"The commit {commit} is not taken again: {reason}. A newer commit will be.")


def _pulled(
    verified: VerifiedCommit,
    *,
    was_here: bool,
    delta_from: str = "",
    delta_problem: str = "",
    loose_objects: int = 0,
    seen: SeenSummary | None = None,
) -> Pulled:
    return Pulled(
        commit=verified.checksum,
        timestamp=verified.commit.timestamp,
        version=verified.commit.version or "",
        was_here=was_here,
        delta_from=delta_from,
        delta_problem=delta_problem,
        loose_objects=loose_objects,
        seen=seen,
    )


class _Pull:
    """One pull under way."""

    def __init__(
        self,
        *,
        repository: BareRepository,
        remote: Remote,
        head: Head,
        verified: VerifiedCommit,
        staging: Staging,
        surroundings: Surroundings,
        settings: PullSettings,
    ) -> None:
        self._repository = repository
        self._remote = remote
        self._head = head
        self._verified = verified
        self._staging = staging
        self._surroundings = surroundings
        self._settings = settings
        self.delta_from = ""
        self.delta_problem = ""
        self.loose_objects = 0

    def take_delta(self, fetcher: Fetcher, bases: list[str]) -> None:
        """Stage what the best delta brings, when there is one."""
        progress = self._surroundings.progress
        try:
            chosen = choose_delta(fetcher, self._remote, self._head, bases)
            if chosen is None:
                return
            self.delta_from = chosen.begins_at
            apply_delta(chosen, fetcher, self._remote, self._repository, self._staging, progress=progress)
        except (TrustError, DeltaSourceMissingError) as error:
            # What it did not bring is fetched object by object.
            self.delta_problem = str(error)

    def take_objects(self) -> None:
        """Stage every object of the tree that is neither here nor staged."""
        progress = self._surroundings.progress
        progress.begin("Fetching objects", None, unit="objects")
        walk = _Walk(self._repository, self._staging)
        try:
            with Crew(
                self._fetch_all, open_fetcher=self._surroundings.open_fetcher, threads=self._settings.connections
            ) as crew:
                walk.enter(self._verified.commit.root_tree, self._verified.commit.root_meta)
                while True:
                    while crew.under_way < crew.capacity and (wanted := walk.next_wanted()):
                        crew.give(wanted)
                    if not crew.under_way:
                        return
                    names, contents = crew.take()
                    self.loose_objects += len(names)
                    progress.advance(len(names))
                    for name, data in zip(names, contents, strict=True):
                        walk.arrived(name, data)
        finally:
            progress.end()

    def publish(self) -> None:
        """Give everything its final name; the commit counts as partial until all of it is there."""
        staging, verified = self._staging, self._verified
        checksum = bytes.fromhex(verified.checksum)
        if verified.detached is not None:
            staging.put_metadata(ObjectName(ObjectType.COMMITMETA, checksum), verified.detached)
        staging.put_metadata(ObjectName(ObjectType.COMMIT, checksum), verified.data)
        self._repository.mark_partial(verified.checksum)
        staging.publish()
        self._repository.clear_partial(verified.checksum)

    def _fetch_all(self, fetcher: Fetcher, names: Sequence[ObjectName]) -> list[bytes | None]:
        return [self._fetch(fetcher, name) for name in names]

    def _fetch(self, fetcher: Fetcher, name: ObjectName) -> bytes | None:
        """Stage one object; metadata is returned as well, to be walked on."""
        url = f"{self._remote.content_url}/{object_path(name)}"
        if name.type is ObjectType.FILE:
            self._fetch_file(fetcher, url, name)
            return None
        data = fetch_bytes(fetcher, url, limit_bytes=metadata_limit())
        check_object(name, data)
        if name.type is ObjectType.DIRMETA:
            decode_dirmeta(data, what=f"object {name}")
        self._staging.put_metadata(name, data)
        return data

    def _fetch_file(self, fetcher: Fetcher, url: str, name: ObjectName) -> None:
        with fetcher.fetch(Request(url=url)) as response:
            if response.status != 200:
                raise RefusedStatusError(url=response.url, status=response.status)
            filez = open_filez(cast(BinaryIO, BodyReader(response.body)), what=f"object {name}")
            self._staging.put_file(name, filez.header, filez.content())


class _Walk:
    """Goes through a commit's tree as its directories become known; each object is looked at once.

    A tree has tens of thousands of names of which few are new, so what a directory lists is looked up as a set.
    """

    def __init__(self, repository: BareRepository, staging: Staging) -> None:
        self._repository = repository
        self._staging = staging
        #: Objects that are here or were asked for.
        self._known = repository.present() | staging.keys
        self._entered: set[bytes] = set()
        #: Directories first: they tell what else is wanted.
        self._wanted_trees: deque[ObjectName] = deque()
        self._wanted: deque[ObjectName] = deque()
        self._readable: list[ObjectName] = []

    def enter(self, tree: bytes, meta: bytes) -> None:
        """Take up a directory."""
        self._want({meta}, ObjectType.DIRMETA)
        if tree in self._entered:
            return
        self._entered.add(tree)
        name = ObjectName(ObjectType.DIRTREE, tree)
        (self._readable if object_key(name) in self._known else self._wanted_trees).append(name)

    def next_wanted(self) -> list[ObjectName]:
        """Return the next objects to be fetched, none when nothing is known to be missing now.

        Several files go together, so that threads wait for each other less often; directories go alone.
        """
        while not self._wanted_trees and self._readable:
            name = self._readable.pop()
            self._list(name, self._local(name))
        if self._wanted_trees:
            return [self._wanted_trees.popleft()]
        return [self._wanted.popleft() for _place in range(min(_FILES_AT_ONCE, len(self._wanted)))]

    def arrived(self, name: ObjectName, data: bytes | None) -> None:
        """Go on with what was fetched."""
        if name.type is ObjectType.DIRTREE and data is not None:
            self._list(name, data)

    def _list(self, name: ObjectName, data: bytes) -> None:
        tree = decode_dirtree(data, what=f"object {name}")
        self._want({file.checksum for file in tree.files}, ObjectType.FILE)
        for directory in tree.directories:
            self.enter(directory.tree, directory.meta)

    def _want(self, checksums: set[bytes], kind: ObjectType) -> None:
        end = f".{extension(kind)}"
        missing = {checksum.hex() + end for checksum in checksums} - self._known
        self._known |= missing
        self._wanted.extend(ObjectName(kind, bytes.fromhex(key[: -len(end)])) for key in sorted(missing))

    def _local(self, name: ObjectName) -> bytes:
        if self._staging.has(name):
            data = Path(self._staging.place(name)).read_bytes()
            check_object(name, data)
            return data
        return self._repository.read(name)
