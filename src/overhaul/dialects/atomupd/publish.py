"""Overhaul's releases for the clients of this system: bundles, an image pool, and the static tree.

`write` makes the signed bundle of a release and lets the product's chunk store be found beside it; nothing points
there yet. `point` writes manifests and the static tree for what the channels open to every device. The query server
decides for each device and reads the policies themselves, see `own_queries`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.chunker import chunk_file
from overhaul.content.index import write_index
from overhaul.content.tree import TreeEntry
from overhaul.dialects.atomupd.bundle import BundleContent, BundleSigner, make_bundle
from overhaul.dialects.atomupd.manifest import Image, canonical_arch
from overhaul.dialects.atomupd.own_pool import (
    CHECKPOINTS_NAME,
    Checkpoints,
    SizesOfReleases,
    bundle_path,
    catalogue_of,
    image_of_release,
    index_path,
    link_store,
    number_checkpoints,
    numbered_checkpoints,
    published_releases,
    stem_of,
)
from overhaul.dialects.atomupd.pool import MANIFEST_SUFFIX
from overhaul.dialects.atomupd.pool_manifest import encode_manifest
from overhaul.dialects.atomupd.server_configuration import RemoteInfo
from overhaul.dialects.atomupd.settings import AtomupdSettings
from overhaul.dialects.atomupd.signed_answers import encode_answers
from overhaul.dialects.atomupd.static_files import write_static_tree
from overhaul.dialects.atomupd.static_tree import StaticTree, static_tree
from overhaul.dialects.seam import DialectSource, DialectWriter, Opened
from overhaul.errors import InputError
from overhaul.host.files import replace_bytes
from overhaul.progress import Progress
from overhaul.release.record import ReleaseId
from overhaul.repository.layout import castr_store_path

_DIRECTORY_OF_IMAGES = "images"
_DIRECTORY_OF_ANSWERS = "meta"


class UnpublishableReleaseError(InputError):
    """A release whose names mean nothing in this dialect."""

    def __init__(self, release: ReleaseId, reason: str) -> None:
        self.release = release
        self.reason = reason
        super().__init__(f"{release} cannot be published for atomupd: {reason}")


class AtomupdDialect:
    """The publisher of this dialect for one product."""

    name = "atomupd"
    needs_tree = False
    shows_older = True

    def __init__(
        self,
        settings: AtomupdSettings,
        *,
        product: str,
        directory: Path,
        base: Path,
        clock: Callable[[], float],
    ) -> None:
        del clock  # nothing that is written holds the time
        self.settings = settings
        self._product = product
        self._directory = directory
        self._images = directory / _DIRECTORY_OF_IMAGES
        self._answers = directory / _DIRECTORY_OF_ANSWERS
        #: The chunk store of `publishing.castr`, beside the directories of dialects.
        self._store = directory.parent.parent / castr_store_path(product)
        self._estimate = SizesOfReleases(self._images, whole=settings.bundle == "plain")
        certificate = base / settings.certificate
        self._signer = BundleSigner(
            key=base / settings.key,
            certificate=certificate,
            keyring=base / settings.keyring if settings.keyring else certificate,
        )

    def check(self, release: ReleaseId) -> None:
        """Refuse a release whose version or build id this system cannot order, and keys that are not there."""
        try:
            image_of_release(release, self.settings, {}, branch="stable")
        except InputError as error:
            raise UnpublishableReleaseError(release, str(error)) from error
        for path in (self._signer.key, self._signer.certificate, self._signer.keyring):
            if not path.is_file():
                raise UnpublishableReleaseError(release, f"the file {path} that signs bundles is not there.")

    def writer(self, source: DialectSource, *, work: Path, workers: int, progress: Progress) -> DialectWriter | None:
        """Begin to publish; None when the bundle is there already."""
        del workers
        if bundle_path(self._images, source.release).exists():
            return None
        return _Writer(self, source, work, progress)

    def write(self, source: DialectSource, *, work: Path) -> None:
        """Make the bundle of a release and link its chunk store."""
        settings, release = self.settings, source.release
        index = b""
        if settings.bundle == "casync":
            link_store(self._images, release, self._store)
            index = write_index(chunk_file(source.image))
            replace_bytes(index_path(self._images, release), index)
        content = BundleContent(
            compatible=settings.compatible,
            version=release.version,
            build_id=release.build_id,
            slot=settings.slot,
            image=source.image,
            index=index,
            form=settings.bundle,
        )
        make_bundle(content, bundle_path(self._images, release), signer=self._signer, work=work)

    def point(self, opened: Sequence[Opened], *, recalled: Mapping[ReleaseId, str]) -> bool:
        """Write manifests and answers for what is opened; return whether anything changed."""
        shown = self._shown(opened, recalled, number=number_checkpoints)
        if shown is None:
            return False
        # Manifests first: who follows an answer may look at what it leads to.
        changed = self._write_manifests(shown, recalled)
        return self._write_answers(shown.tree) or changed

    def answers(self, opened: Sequence[Opened], *, recalled: Mapping[ReleaseId, str]) -> bytes | None:
        """Return the static tree for what is opened, to be signed: our own client need not take it on trust."""
        # A number that was given counts for good, so none is given for what may never be signed.
        shown = self._shown(opened, recalled, number=numbered_checkpoints)
        if shown is None:
            return None
        files = {path: answer.data for path, answer in shown.tree.answers.items()}
        return encode_answers({**files, **shown.tree.others})

    def _shown(
        self,
        opened: Sequence[Opened],
        recalled: Mapping[ReleaseId, str],
        *,
        number: Callable[[Path, set[ReleaseId]], Checkpoints],
    ) -> "_Shown | None":
        by_branch: dict[str, list[ReleaseId]] = {}
        checkpoints: set[ReleaseId] = set()
        for one in opened:
            by_branch.setdefault(self.branch_of(one.channel), []).extend(one.releases)
            checkpoints |= set(one.checkpoints)
        published = tuple(one for one in published_releases(self._images, self._product) if self._fits(one))
        if not by_branch or not published:
            return None
        numbered = number(self._images / CHECKPOINTS_NAME, checkpoints & set(published))
        branches = tuple(by_branch)
        catalogue = catalogue_of(
            self.settings, numbered, branches=branches, opened=by_branch, recalled=recalled, published=published
        )
        variants = tuple(sorted({release.variant for release in published}))
        info = RemoteInfo(variants=variants, branches=branches)
        return _Shown(
            tree=static_tree(
                catalogue,
                remote_info={canonical_arch(release.arch): info for release in published}
                if self.settings.remote_info
                else {},
            ),
            images=tuple(entry.image for entry in catalogue.recorded),
            published=published,
            opened=frozenset(release for releases in by_branch.values() for release in releases),
        )

    def branch_of(self, channel: str) -> str:
        """Return what devices call a channel."""
        return self.settings.branches.get(channel, channel)

    def _fits(self, release: ReleaseId) -> bool:
        try:
            image_of_release(release, self.settings, {}, branch="stable")
        except InputError:
            return False
        return True

    def _write_answers(self, tree: StaticTree) -> bool:
        self._answers.mkdir(parents=True, exist_ok=True)
        change = write_static_tree(self._answers, tree, estimate=self._estimate, remove_stale=True)
        return bool(change.written or change.removed)

    def _write_manifests(self, shown: "_Shown", recalled: Mapping[ReleaseId, str]) -> bool:
        """Give each image that is offered or skipped its manifest, in its most stable branch; return what changed."""
        image_of: dict[tuple[str, str, str, str], Image] = {}
        for image in shown.images:
            name = image.variant, image.arch, image.version.text, str(image.build_id)
            image_of.setdefault(name, image)
        changed = False
        for release in shown.published:
            path = self._images / (stem_of(release) + MANIFEST_SUFFIX)
            own = image_of_release(release, self.settings, {}, branch="stable")
            image = image_of[own.variant, own.arch, own.version.text, str(own.build_id)]
            if release not in shown.opened and release not in recalled:
                if path.exists():
                    path.unlink()
                    changed = True
                continue
            data = encode_manifest(image)
            if not path.exists() or path.read_bytes() != data:
                replace_bytes(path, data)
                changed = True
        return changed


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What the pointers are to show."""

    tree: StaticTree
    images: tuple[Image, ...]
    published: tuple[ReleaseId, ...]
    opened: frozenset[ReleaseId]


class _Writer:
    """One publish; this dialect needs nothing of the tree."""

    def __init__(self, dialect: AtomupdDialect, source: DialectSource, work: Path, progress: Progress) -> None:
        self._dialect = dialect
        self._source = source
        self._work = work
        self._progress = progress

    def take(self, entry: TreeEntry, content: memoryview) -> None:
        """Take nothing."""

    def write(self) -> None:
        """Make the bundle."""
        self._progress.begin("Making the RAUC bundle", 1, "bundles")
        try:
            self._dialect.write(self._source, work=self._work)
            self._progress.advance(1)
        finally:
            self._progress.end()
