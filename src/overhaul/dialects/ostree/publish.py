"""The OSTree publisher of a product: one commit for each release, one branch for each channel that shows it.

    public/ostree/PRODUCT/       the common repository, mode archive; the URL of devices' remote
        refs/heads/releases/VARIANT/ARCH/VERSION/BUILD     what `write` stored, under names nobody follows
        refs/heads/releases-newest/VARIANT/ARCH            the last of these: the next one's parent
        refs/heads/BRANCH                                  what `point` shows

*Write* makes the release's commit: its parent is the variant's release written before, its time never goes back,
and an image made of it holds the very commit that is served later, so a fresh device sees no phantom update.
*Point* lets each channel's branch name the newest release it opens. Clients refuse a commit that is older than
theirs, so going back (a recall, a channel that follows another late) makes a new commit of the good tree.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from overhaul.content.tree import TreeEntry
from overhaul.dialects.ostree.archive import ArchiveRepository, ObjectBatch
from overhaul.dialects.ostree.commit import CommitEntry, TreeCommitter, copy_commit, entries_of, later_than, put_commit
from overhaul.dialects.ostree.delta_make import delta_sources, make_static_delta
from overhaul.dialects.ostree.gvariant import Variant
from overhaul.dialects.ostree.heads import RELEASES, move_heads, shown_branches
from overhaul.dialects.ostree.layout import delta_directory
from overhaul.dialects.ostree.objects import Commit, text_of
from overhaul.dialects.ostree.prepare import LAYOUTS, plan_tree
from overhaul.dialects.ostree.settings import BadOstreeSettingError, OstreeSettings
from overhaul.dialects.seam import DialectSource, Opened
from overhaul.errors import OperatorError
from overhaul.progress import Progress
from overhaul.release.record import ReleaseId

#: In a commit's metadata: the release whose tree it has.
_RELEASE_KEY = "overhaul.release"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
#: A letter that refs do not take, as `_component` writes it.
_ESCAPE = re.compile(r"_[0-9a-f]{2,6}_")


class UnwrittenReleaseError(OperatorError):
    """A release that a channel opens and that this dialect never got."""

    def __init__(self, *, release: ReleaseId, directory: Path) -> None:
        self.release = release
        self.directory = directory
        super().__init__(f"{release} is not in the OSTree repository {directory}; publish it again.")


class OstreeDialect:
    """Publishes the releases of one product."""

    name = "ostree"
    needs_tree = True
    shows_older = False

    def __init__(
        self, settings: OstreeSettings, *, product: str, directory: Path, base: Path, clock: Callable[[], float]
    ) -> None:
        self._settings = settings.checked()
        self._product = product
        self._directory = directory
        self._base = base
        self._clock = clock

    def check(self, release: ReleaseId) -> None:
        """Refuse a release whose commit could not be signed or named."""
        for signer in self._settings.signers(self._base):
            signer.sign(b"may this key sign?")
        self._branch(release, "channel")

    def writer(self, source: DialectSource, *, work: Path, workers: int, progress: Progress) -> "_Writer | None":
        """Begin to commit a release; None when its commit is there, with the deltas and image it should have."""
        self._directory.mkdir(parents=True, exist_ok=True)
        repository = ArchiveRepository.create(self._directory)
        written = repository.resolve(_release_ref(source.release))
        return _Writer(
            self,
            repository,
            source,
            written=written,
            work=work,
            workers=workers,
            progress=progress,
        ).or_nothing()

    def point(self, opened: Sequence[Opened], *, recalled: Mapping[ReleaseId, str]) -> bool:
        """Let each branch name the newest release its channel opens, and write the summary."""
        if not (self._directory / "config").exists() and not any(one.releases for one in opened):
            return False
        repository = ArchiveRepository.create(self._directory)
        signers = self._settings.signers(self._base)
        heads: dict[str, bytes | None] = {}
        with repository.writing():
            for one in opened:
                branch = self._settings.branch_of(
                    product=self._product, arch=one.arch, variant=one.variant, channel=one.channel
                )
                if one.releases and branch in heads:
                    reason = f"{one.channel} and another channel have the one branch {branch}; put {{channel}} into it"
                    raise BadOstreeSettingError(setting="branch", reason=reason)
                if one.releases:
                    heads[branch] = self._head(repository, branch, one, recalled)
                elif self._shows_recalled(repository, branch, recalled):
                    heads.setdefault(branch, None)
            before = shown_branches(repository)
            move_heads(repository, heads, signers=signers, now=int(self._clock()))
            # A delta to what no channel shows yet is in the summary, too, and changes nothing for devices.
            return shown_branches(repository) != before

    def _shows_recalled(self, repository: ArchiveRepository, branch: str, recalled: Mapping[ReleaseId, str]) -> bool:
        """Tell whether a branch of a channel that opens nothing names what is recalled: no device may get that."""
        head = repository.resolve(branch)
        return head is not None and _release_of(repository.commit(head)) in {str(release) for release in recalled}

    def _head(
        self, repository: ArchiveRepository, branch: str, opened: Opened, recalled: Mapping[ReleaseId, str]
    ) -> bytes:
        """Return the commit a branch shall name: the release's own, or a new one of its tree where that is too old."""
        release = opened.releases[-1]
        wanted = repository.resolve(_release_ref(release))
        if wanted is None:
            raise UnwrittenReleaseError(release=release, directory=self._directory)
        head = repository.resolve(branch)
        commit = repository.commit(wanted)
        bound = commit.ref_bindings
        is_bound = bound is None or branch in bound
        if head == wanted or (head is None and is_bound):
            return wanted
        held = None if head is None else repository.commit(head)
        if held is not None and head is not None and _release_of(held) == _release_of(commit):
            # It was committed anew for this branch before.
            return head
        if held is not None and is_bound and _follows(repository, wanted, head, held):
            return wanted
        return self._commit_anew(repository, commit, branch=branch, head=head, recalled=recalled)

    def _commit_anew(
        self,
        repository: ArchiveRepository,
        good: Commit,
        *,
        branch: str,
        head: bytes | None,
        recalled: Mapping[ReleaseId, str],
    ) -> bytes:
        held = None if head is None else repository.commit(head)
        version = good.version or ""
        left = "" if held is None else text_of(held.metadata, _RELEASE_KEY) or ""
        reason = next((why for release, why in recalled.items() if str(release) == left), "")
        subject = f"{version} again" + (f", because {held.version} is recalled: {reason}" if held and reason else "")
        metadata = {**good.metadata, "ostree.ref-binding": Variant("as", (branch,))}
        anew = Commit(
            timestamp=later_than(held, max(int(self._clock()), good.timestamp)),
            root_tree=good.root_tree,
            root_meta=good.root_meta,
            subject=subject,
            parent=head,
            metadata=metadata,
        )
        with repository.adding(), repository.batch() as batch:
            return put_commit(batch, anew, signers=self._settings.signers(self._base))

    def _branch(self, release: ReleaseId, channel: str) -> str:
        return self._settings.branch_of(
            product=release.product, arch=release.arch, variant=release.variant, channel=channel
        )

    def bindings(self, release: ReleaseId) -> tuple[str, ...]:
        """Return the branches that a release's commit is bound to; none when it may be shown by any."""
        channels = self._settings.bound_channels if self._settings.branch_has_channel else ("",)
        return tuple(dict.fromkeys(self._branch(release, channel) for channel in channels))

    def plan(self, source: DialectSource) -> list[CommitEntry]:
        """Return what is committed of a tree."""
        if source.tree is None:
            raise OperatorError("The OSTree dialect got no tree to commit; publish a tree or an image that holds one.")
        places = LAYOUTS.get(self._settings.layout)
        if places is None:
            entries: Sequence[CommitEntry] = entries_of(source.entries)
        else:
            entries = plan_tree(
                source.tree, source.entries, places=places, needs_kernel=self._settings.needs_kernel
            ).entries
        if self._settings.xattrs:
            return list(entries)
        return [replace(entry, xattrs=()) for entry in entries]

    @property
    def settings(self) -> OstreeSettings:
        """The product's settings."""
        return self._settings

    @property
    def base(self) -> Path:
        """The directory that paths in the settings are relative to."""
        return self._base


class _Writer:
    """One release on its way into the common repository."""

    def __init__(
        self,
        dialect: OstreeDialect,
        repository: ArchiveRepository,
        source: DialectSource,
        *,
        written: bytes | None,
        work: Path,
        workers: int,
        progress: Progress,
    ) -> None:
        self._dialect = dialect
        self._repository = repository
        self._source = source
        self._written = written
        self._workers = workers
        self._progress = progress
        self._committer: TreeCommitter | None = None
        if written is None:
            self._batch = ObjectBatch(repository, work)
            self._committer = TreeCommitter(
                repository, self._batch, dialect.plan(source), level=dialect.settings.compression_level
            )

    def or_nothing(self) -> "_Writer | None":
        """Return this writer, or None when there is nothing to do."""
        return self if self._written is None or self._has_to_finish(self._written) else None

    def take(self, entry: TreeEntry, content: memoryview) -> None:
        """Hash a file, and pack it when the repository has no such object."""
        if self._committer is not None:
            self._committer.take(entry, content)

    def write(self) -> None:
        """Store the commit and what belongs to it."""
        with self._repository.writing():
            commit = self._written or self._commit()
            if self._is_unfollowed(commit):
                self._repository.set_branch(_newest_ref(self._source.release), commit)
            with self._repository.adding():
                for source in self._missing_deltas(commit):
                    make_static_delta(self._repository, source, commit, workers=self._workers, progress=self._progress)
            self._store_image(commit)

    def _commit(self) -> bytes:
        release = self._source.release
        settings = self._dialect.settings
        parent = self._repository.resolve(_newest_ref(release))
        metadata = {
            "version": Variant("s", release.version),
            _RELEASE_KEY: Variant("s", str(release)),
            "ostree.architecture": Variant("s", release.arch),
        }
        bindings = self._dialect.bindings(release)
        if bindings:
            metadata["ostree.ref-binding"] = Variant("as", tuple(sorted(bindings)))
        before = [*self._shown().values(), *([] if parent is None else [self._repository.commit(parent)])]
        assert self._committer is not None  # noqa: S101
        with self._repository.adding():
            root = self._committer.finish()
            commit = Commit(
                # Also than what a recall made anew: else this would have to be made anew itself, without its deltas.
                timestamp=max([self._source.timestamp, *(later_than(one, 0) for one in before)]),
                root_tree=root.tree,
                root_meta=root.meta,
                subject=f"Build {release.build_id} of {release.variant} {release.version} in {release.product}",
                parent=parent,
                metadata=metadata,
            )
            checksum = put_commit(self._batch, commit, signers=settings.signers(self._dialect.base))
            self._batch.store()
            # This name comes first: a run that dies here makes no second commit when it is run again.
            self._repository.set_branch(_release_ref(release), checksum)
        return checksum

    def _is_unfollowed(self, commit: bytes) -> bool:
        """Tell whether the next release would not have this one as its parent, and should."""
        return self._repository.resolve(_newest_ref(self._source.release)) == self._repository.commit(commit).parent

    def _has_to_finish(self, commit: bytes) -> bool:
        return self._is_unfollowed(commit) or bool(self._missing_deltas(commit)) or not self._has_image(commit)

    def _shown(self) -> dict[bytes, Commit]:
        """Return what branches show of this variant now, which is what devices have."""
        release = self._source.release
        kind = f"{release.product}/{release.variant}/{release.arch} "
        branches = self._repository.branches().items()
        heads = {head for name, head in branches if not name.startswith((f"{RELEASES}/", f"{RELEASES}-newest/"))}
        found = {head: self._repository.commit(head) for head in sorted(heads)}
        return {head: commit for head, commit in found.items() if (_release_of(commit) or "").startswith(kind)}

    def _missing_deltas(self, commit: bytes) -> list[bytes | None]:
        settings = self._dialect.settings
        sources = delta_sources(
            self._repository, commit, count=settings.delta_sources, from_nothing=settings.delta_from_nothing
        )
        if settings.delta_sources:
            # The last written release may never have been shown, or only to a few; or devices went back from it.
            age = self._repository.commit(commit).timestamp
            sources += [head for head, shown in self._shown().items() if shown.timestamp < age]
        return [
            source
            for source in dict.fromkeys(sources)
            if not (self._repository.path / delta_directory(source, commit) / "superblock").exists()
        ]

    def _image_repository(self) -> Path | None:
        release = self._source.release
        return self._dialect.settings.image_repository_of(
            self._dialect.base, product=release.product, arch=release.arch, variant=release.variant
        )

    def _image_branches(self) -> tuple[str, ...]:
        release = self._source.release
        return self._dialect.bindings(release) or (_release_ref(release),)

    def _has_image(self, commit: bytes) -> bool:
        place = self._image_repository()
        if place is None:
            return True
        if not (place / "config").exists():
            return False
        image = ArchiveRepository(place)
        return all(image.resolve(branch) == commit for branch in self._image_branches())

    def _store_image(self, commit: bytes) -> None:
        """Rebuild the repository that holds this commit alone, under a temporary name."""
        place = self._image_repository()
        if place is None:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        image = ArchiveRepository.create(temporary)
        copy_commit(self._repository, image, commit)
        signers = self._dialect.settings.signers(self._dialect.base)
        move_heads(image, dict.fromkeys(self._image_branches(), commit), signers=signers, now=self._source.timestamp)
        shutil.rmtree(place, ignore_errors=True)
        temporary.rename(place)


def _follows(repository: ArchiveRepository, wanted: bytes, head: bytes | None, held: Commit) -> bool:
    """Tell whether clients that have `head` go on to `wanted` as to something newer."""
    commit = repository.commit(wanted)
    if commit.timestamp != held.timestamp:
        return commit.timestamp > held.timestamp
    # Builds with one SOURCE_DATE_EPOCH: their history tells which came later.
    return any(parent == head for parent in repository.ancestors(wanted))


def _release_of(commit: Commit) -> str | None:
    return text_of(commit.metadata, _RELEASE_KEY)


def _release_ref(release: ReleaseId) -> str:
    return "/".join((RELEASES, *map(_component, (release.variant, release.arch, release.version, release.build_id))))


def _newest_ref(release: ReleaseId) -> str:
    return "/".join((f"{RELEASES}-newest", _component(release.variant), _component(release.arch)))


def _component(name: str) -> str:
    """Return `name` as a component of a ref; what refs do not take is escaped, so that no two names are one."""
    if _PLAIN.fullmatch(name) and not _ESCAPE.search(name):
        return name
    return "".join(
        letter if (letter.isascii() and letter.isalnum()) or (letter in ".-" and place) else f"_{ord(letter):02x}_"
        for place, letter in enumerate(name)
    )
