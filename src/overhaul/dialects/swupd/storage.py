"""The staging directory of the old server, processed version by version.

groups.ini or bundles.toml          which bundles there are; without either everything is os-core
image/<version>/<bundle>/           a root file system for each bundle, or
image/<version>/full/               one for all, and image/<version>/<bundle>.content.txt: a bundle's paths
image/<version>/noship/<bundle>-includes    names of included bundles, one a line
image/LAST_VER, image/latest.version        the last version that was processed
www/                                what web servers serve
server.ini                          other places for image/ and www/, and whether debugging files are left out
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from overhaul.content.tree import TreeEntry, read_files, scan_tree
from overhaul.dialects.swupd.build import Build, BuiltVersion, Request, VersionOrderError, building
from overhaul.dialects.swupd.bundles import ONLY_CORE, BundleDefinition, check_bundles, load_bundles
from overhaul.dialects.swupd.eras import DEFAULT_FORMAT
from overhaul.dialects.swupd.names import CORE_BUNDLE, FULL, is_bundle_name, parse_version
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.pointers import move_pointers, remove_leftovers
from overhaul.dialects.swupd.published import PublishedTree
from overhaul.dialects.swupd.server_ini import ServerIni, read_server_ini
from overhaul.dialects.swupd.trees import VersionFromTree, build_trees
from overhaul.errors import InputError
from overhaul.host.files import replace_bytes
from overhaul.progress import Progress

#: Regular versions are so far apart; what lies between is for fixes.
VERSION_STEP = 10
_POINTERS = ("LAST_VER", "latest.version")
#: What a version was made of, beside its manifests.
INPUTS_NOTE = "overhaul-inputs"
_MAX_LIST_BYTES = 1 << 30


class MissingInputError(InputError):
    """Something that a version is to be made of and that is not there."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be processed: {reason}.")


class StoragePlaceError(InputError):
    """A staging directory that is none."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} is no directory; name the staging directory that has image/ and www/.")


@dataclass(frozen=True, kw_only=True)
class Processed:
    """What became of a version."""

    #: More than one when the format went up; none when it was published as it is already.
    built: tuple[BuiltVersion, ...]
    #: What each format's devices are shown now.
    latest: dict[int, int]


@dataclass(frozen=True)
class Storage:
    """A staging directory."""

    directory: Path

    @property
    def web(self) -> Path:
        """What web servers serve."""
        return self.settings.web

    @property
    def images(self) -> Path:
        """Where root file systems wait."""
        return self.settings.images

    @cached_property
    def settings(self) -> ServerIni:
        """What its server.ini says."""
        return read_server_ini(self.directory)

    def last_version(self) -> int:
        """Return the last version that was processed here; 0 for none."""
        for name in reversed(_POINTERS):
            pointer = self.images / name
            version = parse_version(pointer.read_bytes()) if pointer.is_file() else None
            if version is not None and (self.web / str(version)).is_dir():
                return version
        return max(PublishedTree(self.web).latest().values(), default=0)

    def last_format(self) -> int:
        """Return the format of the last version, or the default for a first one."""
        last = self.last_version()
        return PublishedTree(self.web).mom(last).format if last else DEFAULT_FORMAT

    def process(
        self, version: int, *, options: BuildOptions, timestamp: int, minversion: int = 0, progress: Progress
    ) -> Processed:
        """Build a version of its staged trees and let devices see it; a run that died is simply repeated.

        When the format goes up, two versions are made, as clients need it: `version` in the old format, whose content
        says that it is the one after it, and that one in the new format.

        Raises:
            LockedError: Somebody else builds here.
            InputError: The version or its input is not right.
            FailedTrialError: It did not install.
        """
        if self.settings.debug_banned:
            options = replace(options, debug=False, debug_directories=self.settings.debug_directories)
        place = self.images / str(version)
        if not place.is_dir():
            raise MissingInputError(path=place, reason="there is no such directory; extract a root file system first")
        with building(self.web):
            tree = PublishedTree(self.web)
            inputs = _Inputs.read(self.directory, place)
            previous = self.last_version()
            old_format = tree.mom(previous).format if previous else options.format
            if previous >= version:
                return self._again(tree, version, inputs)
            steps = [(version, options, 0, 0)]
            if old_format < options.format:
                following = version + VERSION_STEP
                steps = [(version, replace(options, format=old_format), following, options.format)]
                steps.append((following, options, 0, 0))
            built = []
            for number, step_options, content_version, content_format in steps:
                request = Request(
                    version=number,
                    previous=previous,
                    timestamp=timestamp,
                    minversion=minversion,
                    content_version=content_version,
                    content_format=content_format,
                )
                done = self._build(tree, request, inputs, step_options, progress)
                built += [done] if done is not None else []
                previous = number
            for number, step_options, _, _ in steps:
                signer = step_options.signer
                move_pointers(self.web, format_number=step_options.format, version=number, signer=signer)
            remove_leftovers(self.images)
            for name in _POINTERS:
                replace_bytes(self.images / name, b"%d\n" % previous)
            return Processed(built=tuple(built), latest=tree.latest())

    def _again(self, tree: PublishedTree, version: int, inputs: "_Inputs") -> Processed:
        note = tree.path(f"{version}/{INPUTS_NOTE}")
        if note.is_file() and note.read_bytes().strip() == inputs.digest:
            return Processed(built=(), latest=tree.latest())
        last = self.last_version()
        following = (last // VERSION_STEP + 1) * VERSION_STEP
        reason = f"version {last} was published, and versions never change; build this as {following}"
        raise VersionOrderError(version=version, reason=reason)

    def _build(
        self, tree: PublishedTree, request: Request, inputs: "_Inputs", options: BuildOptions, progress: Progress
    ) -> BuiltVersion | None:
        place = tree.path(str(request.version))
        if place.exists():
            note = place / INPUTS_NOTE
            if note.is_file() and note.read_bytes().strip() == inputs.digest:
                return None  # a run that died had only its pointers left to move
            shutil.rmtree(place)
        build = Build(tree, request, options, progress)
        notes = {INPUTS_NOTE: inputs.digest + b"\n"}
        if inputs.trees:
            return build_trees(build, inputs.trees, notes=notes)
        source = VersionFromTree(build, inputs.root, inputs.entries, inputs.definitions, inputs.contents)
        read_files(inputs.root, source.listed, [source.take], workers=options.workers, progress=progress)
        return source.finish(notes)


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What a version is made of, and what tells it from other inputs."""

    definitions: tuple[BundleDefinition, ...]
    #: A tree for each bundle, or none.
    trees: tuple[tuple[BundleDefinition, Path], ...]
    #: The one tree for all bundles.
    root: Path
    entries: tuple[TreeEntry, ...]
    contents: dict[str, frozenset[bytes]] | None
    digest: bytes

    @classmethod
    def read(cls, directory: Path, place: Path) -> "_Inputs":
        definitions = _definitions(directory, place)
        lists = {one.name: place / f"{one.name}.content.txt" for one in definitions}
        contents = {name: _read_list(path) for name, path in lists.items() if path.is_file()}
        has_trees = any((place / one.name).is_dir() for one in definitions if one.name != CORE_BUNDLE)
        roots: Sequence[tuple[BundleDefinition, Path]] = ()
        if (place / FULL).is_dir() and not has_trees:
            root = place / FULL
        elif len(definitions) == 1 or any(one.files for one in definitions):
            root = place / CORE_BUNDLE
        else:
            root = place
            roots = [(one, place / one.name) for one in definitions if not one.is_deprecated]
        for path in [path for _one, path in roots] or [root]:
            if not path.is_dir():
                raise MissingInputError(path=path, reason="the bundle has no root file system there")
        entries = () if roots else scan_tree(root)
        summary = hashlib.sha256(repr(definitions).encode())
        for path in [path for _one, path in roots] or [root]:
            for entry in entries or scan_tree(path):
                summary.update(
                    repr((entry.path, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns)).encode()
                )
                summary.update(repr((entry.target, entry.xattrs)).encode())
        for name in sorted(contents):
            summary.update(repr((name, sorted(contents[name]))).encode())
        return cls(
            definitions=definitions,
            trees=tuple(roots),
            root=root,
            entries=tuple(entries),
            contents=contents or None,
            digest=summary.hexdigest().encode(),
        )


def _definitions(directory: Path, place: Path) -> tuple[BundleDefinition, ...]:
    known: tuple[BundleDefinition, ...] = ()
    for name in ("bundles.toml", "groups.ini"):
        if (directory / name).is_file():
            known = load_bundles(directory / name)
            break
    else:
        found = [name for name in os.listdir(place) if (place / name).is_dir() and is_bundle_name(name)]
        names = sorted(set(found) - {"noship", CORE_BUNDLE})
        known = tuple(BundleDefinition(name=name) for name in names) or ONLY_CORE
    included = []
    for one in known:
        path = place / "noship" / f"{one.name}-includes"
        more = path.read_text().split() if path.is_file() else []
        included.append(replace(one, includes=tuple({*one.includes, *more})))
    return check_bundles(included, place=str(directory))


def _read_list(path: Path) -> frozenset[bytes]:
    if path.stat().st_size > _MAX_LIST_BYTES:
        raise MissingInputError(path=path, reason=f"it has more than {_MAX_LIST_BYTES} bytes")
    return frozenset(line if line.startswith(b"/") else b"/" + line for line in path.read_bytes().splitlines() if line)
