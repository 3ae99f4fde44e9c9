"""Root file systems as values, published trees built from them, and a reader of swupd trees that is not the builder's.

`read_version` installs a version with the system's own `tar` and `xz`, and Python's `hmac`: it shares no line with
what it judges.
"""

import hashlib
import hmac
import os
import stat
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.tree import read_files, scan_tree
from overhaul.dialects.swupd.build import Build, BuiltVersion, Request, building
from overhaul.dialects.swupd.bundles import ONLY_CORE, BundleDefinition
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.pointers import move_pointers
from overhaul.dialects.swupd.published import PublishedTree
from overhaul.dialects.swupd.trees import VersionFromTree
from overhaul.progress import Silence
from tests.tools import need

TIMESTAMP = 1_700_000_000
#: Fast, and without what clients need besides: a tree is listed as it is.
PLAIN = BuildOptions(complete=False, workers=2, fullfile_level=0, pack_level=0)

#: Path -> content of a file, `-> target` for a link, None for a directory.
Tree = dict[str, bytes | str | None]


def write_tree(root: Path, tree: Tree) -> Path:
    """Write `tree` below `root`, in place of whatever is there."""
    if root.exists():
        subprocess.run(["rm", "-rf", "--", root], check=True)
    root.mkdir(parents=True)
    for name, content in tree.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return root


def build(
    web: Path,
    root: Path,
    *,
    version: int = 10,
    previous: int = 0,
    options: BuildOptions = PLAIN,
    bundles: tuple[BundleDefinition, ...] = ONLY_CORE,
    minversion: int = 0,
) -> BuiltVersion:
    """Build and show a version of the tree at `root`."""
    request = Request(version=version, previous=previous, timestamp=TIMESTAMP, minversion=minversion)
    with building(web):
        made = Build(PublishedTree(web), request, options, Silence())
        source = VersionFromTree(made, root, scan_tree(root), bundles)
        read_files(root, source.listed, [source.take], workers=2)
        done = source.finish({})
        move_pointers(web, format_number=options.format, version=version, signer=options.signer)
    return done


@dataclass(frozen=True)
class Line:
    """One line of a manifest, split by hand."""

    flags: str
    hash: str
    version: int
    name: str


def lines(web: Path, version: int, bundle: str = "os-core") -> dict[str, Line]:
    """Return the lines of a published manifest by name."""
    text = (web / str(version) / f"Manifest.{bundle}").read_text("utf-8", "surrogateescape")
    fields = (line.split("\t") for line in text.partition("\n\n")[2].splitlines())
    return {name: Line(flags, digest, int(number), name) for flags, digest, number, name in fields}


def header(web: Path, version: int, bundle: str = "os-core") -> dict[str, list[str]]:
    """Return the header of a published manifest."""
    text = (web / str(version) / f"Manifest.{bundle}").read_text("utf-8", "surrogateescape")
    values: dict[str, list[str]] = {}
    for line in text.partition("\n\n")[0].splitlines()[1:]:
        key, _, value = line.partition(":\t")
        values.setdefault(key, []).append(value)
    return values


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive with bsdtar, which is libarchive, as the original client does."""
    target.mkdir(parents=True, exist_ok=True)
    command = [need("bsdtar"), "-x", "-p", "--numeric-owner", "-f", str(archive), "-C", str(target)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, (archive, done.stderr)


def oracle_hash(path: Path) -> str:
    """Return the hash of what lies at `path`, computed from the description alone."""
    status = path.lstat()
    size = 0
    if stat.S_ISDIR(status.st_mode):
        mode, data = status.st_mode, b"DIRECTORY"
    elif stat.S_ISLNK(status.st_mode):
        data = os.fsencode(path.readlink())
        mode, size = 0, len(data)
    else:
        data = path.read_bytes()
        mode, size = status.st_mode, len(data)
    key = struct.pack("<5Q", mode, status.st_uid, status.st_gid, 0, size)
    meta = hmac.new(key, b"", hashlib.sha256).hexdigest().encode()
    return hmac.new(meta, data, hashlib.sha256).hexdigest()


def check_fullfiles(web: Path, version: int, work: Path) -> int:
    """Unpack and hash every full file of a version; return how many there are."""
    archives = sorted((web / str(version) / "files").glob("*.tar"))
    for archive in archives:
        place = work / archive.stem
        unpack(archive, place)
        assert [path.name for path in place.iterdir()] == [archive.stem]
        assert oracle_hash(place / archive.stem) == archive.stem
    return len(archives)
