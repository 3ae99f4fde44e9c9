"""Releases of a product become swupd versions: the dialect that `publishing` calls.

    <variant>/<arch>/                       a published tree (see `names`), its pointers those of one channel
    <variant>/<arch>/<version>/release      which release a version is, as JSON
    <variant>/<arch>/channels/<channel>/version/format<N>/latest    the version URL of every channel

swupd's versions are numbers, so each release gets the next multiple of ten, and its name is kept beside its
manifests. Clients never go back: when a release is recalled and devices were shown it, the newest one that is still
open is published again under a higher number. All of its full files exist, so that takes seconds.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from overhaul.content.tree import TreeEntry
from overhaul.dialects.seam import DialectSource, DialectWriter, Opened
from overhaul.dialects.swupd.again import build_again
from overhaul.dialects.swupd.build import Build, Request, building
from overhaul.dialects.swupd.bundles import ONLY_CORE, BundleDefinition, load_bundles
from overhaul.dialects.swupd.eras import NEWEST_VERSION
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.pointers import move_pointers, pointed_version
from overhaul.dialects.swupd.published import DamagedTreeError, PublishedTree
from overhaul.dialects.swupd.settings import SwupdSettings
from overhaul.dialects.swupd.signing import Signer, load_signer
from overhaul.dialects.swupd.trees import VersionFromTree
from overhaul.errors import InputError, OperatorError
from overhaul.progress import Progress, Silence
from overhaul.release.record import ReleaseId

RELEASE_NOTE = "release"
VERSION_STEP = 10


class UnsignedSwupdError(OperatorError):
    """Settings without a key that do not say that this is meant."""

    def __init__(self, *, product: str) -> None:
        self.product = product
        super().__init__(
            f"The product {product} has no key and certificate for swupd; name both in its swupd table, or write "
            "`unsigned = true` there when its clients check no signatures."
        )


class ExhaustedVersionsError(InputError):
    """No number is left."""

    def __init__(self, *, version: int) -> None:
        self.version = version
        super().__init__(f"No swupd version can follow {version}; begin a new product.")


class _ReleaseNote(msgspec.Struct, frozen=True):
    """Which release a version is."""

    release: ReleaseId
    #: The version it was first published as, when it is published again.
    again: int = 0


@dataclass(frozen=True)
class _Versions:
    """The versions of one variant and architecture, by release."""

    tree: PublishedTree

    def notes(self) -> dict[int, _ReleaseNote]:
        """Return which release each version is."""
        notes: dict[int, _ReleaseNote] = {}
        for version in self.tree.versions():
            path = self.tree.path(f"{version}/{RELEASE_NOTE}")
            try:
                notes[version] = msgspec.json.decode(path.read_bytes(), type=_ReleaseNote)
            except (OSError, msgspec.MsgspecError) as error:
                raise DamagedTreeError(path=path, reason="it does not name a release") from error
        return notes


class SwupdDialect:
    """Publishes a product's releases for swupd's clients."""

    name = "swupd"
    needs_tree = True
    shows_older = False

    def __init__(
        self,
        settings: SwupdSettings,
        *,
        product: str,
        directory: Path,
        base: Path,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._product = product
        self._directory = directory
        self._base = base
        self._clock = clock

    def check(self, release: ReleaseId) -> None:
        """Refuse what cannot be published, before hours of work."""
        self._options(workers=1)
        self.definitions()
        versions = self._tree(release).versions()
        if versions and versions[-1] > NEWEST_VERSION - 2 * VERSION_STEP:
            raise ExhaustedVersionsError(version=versions[-1])

    def writer(self, source: DialectSource, *, work: Path, workers: int, progress: Progress) -> DialectWriter | None:  # noqa: ARG002
        """Begin a version; None when the release is one already.

        `work` is left empty: what a killed run made is worth keeping, so it lies in the tree under a hidden name.
        """
        tree = self._tree(source.release)
        notes = _Versions(tree).notes()
        if any(note.release == source.release for note in notes.values()):
            return None
        if source.tree is None:
            raise AssertionError("a dialect that needs a tree was given none")
        return _Writer(self, tree, source, source.tree, self._options(workers=workers), progress)

    def point(self, opened: Sequence[Opened], *, recalled: Mapping[ReleaseId, str]) -> bool:  # noqa: ARG002
        """Show each channel's devices the newest release that is open to them.

        Which release was recalled follows from what is opened, so the reasons are not asked for.
        """
        changed = False
        for one in opened:
            tree = PublishedTree(self._directory / one.variant / one.arch)
            if not tree.web.is_dir():
                continue
            with building(tree.web):
                changed |= self._point_channel(tree, one)
        return changed

    def _point_channel(self, tree: PublishedTree, opened: Opened) -> bool:
        options = self._options(workers=os.cpu_count() or 1)
        notes = _Versions(tree).notes()
        versions = [version for version, note in notes.items() if note.release in opened.releases]
        newest = next((r for r in reversed(opened.releases) if any(n.release == r for n in notes.values())), None)
        if newest is None:
            return False
        version = max(version for version in versions if notes[version].release == newest)
        roots = [tree.web / "channels" / opened.channel]
        if opened.channel == self._settings.channel:
            roots.append(tree.web)
        shown = max(pointed_version(root, options.format) for root in roots)
        if shown > version:
            # Devices were shown something newer that is closed now; only a higher number brings them back.
            version = self._publish_again(tree, notes, version, options)
        changed = False
        for root in roots:
            changed |= move_pointers(root, format_number=options.format, version=version, signer=options.signer)
        return changed

    def _publish_again(
        self, tree: PublishedTree, notes: Mapping[int, _ReleaseNote], version: int, options: BuildOptions
    ) -> int:
        last = max(notes)
        number = _next_version(last)
        request = Request(version=number, previous=last, timestamp=int(self._clock()))
        note = _ReleaseNote(notes[version].release, version)
        build = Build(tree, request, options, Silence())
        build_again(build, version, notes={RELEASE_NOTE: msgspec.json.encode(note)})
        return number

    def _tree(self, release: ReleaseId) -> PublishedTree:
        return PublishedTree(self._directory / release.variant / release.arch)

    def definitions(self) -> tuple[BundleDefinition, ...]:
        """Return the bundles of the product."""
        return load_bundles(self._base / self._settings.bundles) if self._settings.bundles else ONLY_CORE

    def _options(self, *, workers: int) -> BuildOptions:
        settings = self._settings
        return BuildOptions(
            format=settings.format,
            signer=self._signer(),
            packs_from=settings.packs_from,
            zero_packs=settings.zero_packs,
            compression=settings.compression,
            fullfile_level=settings.fullfile_level,
            pack_level=settings.pack_level,
            xattrs=settings.xattrs,
            stateless=settings.stateless,
            debug=settings.debug,
            ghosts=settings.ghosts,
            renames=settings.renames,
            content_url=settings.content_url,
            version_url=settings.version_url,
            workers=workers,
        )

    def _signer(self) -> Signer | None:
        settings = self._settings
        if settings.key and settings.certificate:
            return load_signer(key=self._base / settings.key, certificate=self._base / settings.certificate)
        if not settings.unsigned:
            raise UnsignedSwupdError(product=self._product)
        return None


@dataclass
class _Writer:
    """One release on its way to a version; the tree's lock is held while it writes."""

    dialect: SwupdDialect
    tree: PublishedTree
    source: DialectSource
    root: Path
    options: BuildOptions
    progress: Progress

    def __post_init__(self) -> None:
        self._lock = ExitStack()
        self._lock.enter_context(building(self.tree.web))
        try:
            previous = max(self.tree.versions(), default=0)
            request = Request(version=_next_version(previous), previous=previous, timestamp=self.source.timestamp)
            build = Build(self.tree, request, self.options, self.progress)
            definitions = self.dialect.definitions()
            self._version = VersionFromTree(build, self.root, self.source.entries, definitions)
        except BaseException:
            self._lock.close()
            raise

    def take(self, entry: TreeEntry, content: memoryview) -> None:
        """Hash a file, and pack it when it is new."""
        self._version.take(entry, content)

    def write(self) -> None:
        """Write the version; nothing points at it yet."""
        with self._lock:
            self._version.finish({RELEASE_NOTE: msgspec.json.encode(_ReleaseNote(self.source.release))})


def _next_version(version: int) -> int:
    return (version // VERSION_STEP + 1) * VERSION_STEP
