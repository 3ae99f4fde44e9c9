"""The image pool on the server's disk, found anew each time and trusted in nothing.

One image is three names with the same stem, anywhere below the pool:

    STEM.manifest.json     what it is
    STEM.raucb             its bundle, a file
    STEM.castr             its chunk store, a directory with up to a hundred thousand files; never entered

Directories are walked in the order of their names' characters, files before directories below. The pool may change
under the walk: what is gone is not there, what is half there comes with the next walk. A manifest is read again only
when its file has changed, and `has_changed` tells by asking each directory and manifest for its times whether a walk is
worth while, so that it also works where no kernel reports changes.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from overhaul.dialects.atomupd.configuration import UnusableConfigurationError
from overhaul.dialects.atomupd.manifest import MAX_MANIFEST_BYTES, Image, UnusableManifestError, parse_manifest

MANIFEST_SUFFIX = ".manifest.json"
BUNDLE_SUFFIX = ".raucb"
STORE_SUFFIX = ".castr"
DETAILS_SUFFIX = ".chunks_details.json"

#: A directory that changed so shortly before it was read may change again without showing it in its time.
_UNSETTLED_NS = 50_000_000

#: Inode, size, and the times of content and inode in nanoseconds.
_Stamp = tuple[int, int, int, int]


class FoundImage(NamedTuple):
    """One manifest, and what lies beside it."""

    #: Relative to the pool, without the suffix; forward slashes.
    stem: str
    #: None when the manifest cannot be used; then `problem` says why.
    image: Image | None
    problem: str
    unknown_fields: tuple[str, ...]
    has_bundle: bool
    has_store: bool
    has_details: bool

    @property
    def manifest(self) -> str:
        """The manifest's path, relative to the pool."""
        return self.stem + MANIFEST_SUFFIX


class FoundPool(NamedTuple):
    """Everything one walk found."""

    images: tuple[FoundImage, ...]
    #: Directories that could not be read, with the reason.
    problems: tuple[str, ...]


class PoolScanner:
    """Walks one pool, again and again."""

    def __init__(self, root: Path, *, branches: bool) -> None:
        self.root = root
        self._branches = branches
        self._read: dict[str, tuple[_Stamp, FoundImage]] = {}
        self._stamps: dict[str, _Stamp] = {}
        self._settled = True
        self._linked = False

    @property
    def stamps(self) -> Mapping[str, _Stamp]:
        """Each directory and manifest of the last walk; relative to the pool, directories with a slash at the end."""
        return self._stamps

    @property
    def tells_by_times(self) -> bool:
        """Whether nothing can have changed since the last walk while all `stamps` are the same.

        A link to a bundle shows nothing of what becomes of the bundle.
        """
        return self._settled and not self._linked

    def scan(self) -> FoundPool:
        """Return what the pool holds now.

        Raises:
            UnusableConfigurationError: The pool itself cannot be read.
        """
        before, self._read, self._stamps, self._linked = self._read, {}, {}, False
        # A walk that fails leaves no stamps, and what is not known must not pass for unchanged.
        self._settled = False
        images: list[FoundImage] = []
        problems: list[str] = []
        begun_ns = time.time_ns()
        for directory, names in self._directories(problems):
            for name in names.manifests:
                path = f"{directory}{name}"
                found = self._image(path, path[: -len(MANIFEST_SUFFIX)], names, before.get(path))
                if found is not None:
                    images.append(found)
        newest = max((max(stamp[2], stamp[3]) for stamp in self._stamps.values()), default=0)
        self._settled = newest < begun_ns - _UNSETTLED_NS
        return FoundPool(tuple(images), tuple(problems))

    def has_changed(self) -> bool:
        """Whether a walk would find something else than the last one did; cheap."""
        if not self._settled:
            return True
        root = f"{self.root}/"
        for name, stamp in self._stamps.items():
            try:
                if _stamp(os.stat(root + name)) != stamp:
                    return True
            except OSError:
                return True
        return False

    def _directories(self, problems: list[str]) -> "Iterator[tuple[str, _Names]]":
        waiting = [""]
        while waiting:
            directory = waiting.pop()
            path = f"{self.root}/{directory}"
            try:
                # The time is taken before the names, so that a change between the two is seen by the next look.
                stamp = _stamp(os.stat(path))
                with os.scandir(path) as entries:
                    names = _Names.sort(entries)
            except OSError as error:
                if not directory:
                    raise UnusableConfigurationError(
                        path=self.root, reason=f"the pool cannot be read ({error.strerror or error})"
                    ) from error
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    problems.append(f"{directory}: {error.strerror or error}")
                continue
            self._stamps[directory] = stamp
            self._linked = self._linked or names.linked
            yield directory, names
            waiting.extend(f"{directory}{name}/" for name in reversed(names.directories))

    def _image(
        self, path: str, stem: str, names: "_Names", known: tuple[_Stamp, FoundImage] | None
    ) -> FoundImage | None:
        base = stem[stem.rfind("/") + 1 :]
        beside = (base in names.bundles, base in names.stores, base in names.details)
        try:
            descriptor = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            return FoundImage(stem, None, f"it cannot be read ({error.strerror})", (), *beside)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            stamp = self._stamps[path] = _stamp(status)
            if known is not None and known[0] == stamp:
                found = known[1]
                if (found.has_bundle, found.has_store, found.has_details) != beside:
                    found = FoundImage(stem, found.image, found.problem, found.unknown_fields, *beside)
            else:
                found = self._parsed(os.read(descriptor, min(status.st_size, MAX_MANIFEST_BYTES) + 1), stem, beside)
        except OSError as error:
            return FoundImage(stem, None, f"it cannot be read ({error.strerror})", (), *beside)
        finally:
            os.close(descriptor)
        self._read[path] = (stamp, found)
        return found

    def _parsed(self, data: bytes, stem: str, beside: tuple[bool, bool, bool]) -> FoundImage:
        try:
            stem.encode()
            image, unknown = parse_manifest(data, branches=self._branches)
        except UnicodeError:
            return FoundImage(stem, None, "its path is no UTF-8, so no client can ask for it", (), *beside)
        except UnusableManifestError as error:
            return FoundImage(stem, None, error.reason, (), *beside)
        return FoundImage(stem, image, "", unknown, *beside)


class _Names(NamedTuple):
    """The names in one directory that mean something here; stems without suffix."""

    manifests: list[str]
    directories: list[str]
    bundles: set[str]
    stores: set[str]
    details: set[str]
    #: Whether a bundle or store is a symbolic link.
    linked: bool

    @classmethod
    def sort(cls, entries: "Iterator[os.DirEntry[str]]") -> "_Names":
        manifests: list[str] = []
        directories: list[str] = []
        bundles: set[str] = set()
        stores: set[str] = set()
        details: set[str] = set()
        linked = False
        for entry in entries:
            name = entry.name
            if name.endswith(BUNDLE_SUFFIX):
                linked = linked or entry.is_symlink()
                if entry.is_file():
                    bundles.add(name[: -len(BUNDLE_SUFFIX)])
                    continue
            elif name.endswith(STORE_SUFFIX):
                linked = linked or entry.is_symlink()
                if entry.is_dir():
                    stores.add(name[: -len(STORE_SUFFIX)])
                continue
            elif name.endswith(MANIFEST_SUFFIX):
                manifests.append(name)
                continue
            elif name.endswith(DETAILS_SUFFIX):
                details.add(name[: -len(DETAILS_SUFFIX)])
                continue
            if not name.startswith(".") and entry.is_dir(follow_symlinks=False):
                directories.append(name)
        manifests.sort()
        directories.sort()
        return cls(manifests, directories, bundles, stores, details, linked)


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
