"""A release between the two of the standard pair: every other updated package as in the new one, the kernel as before.

    python -m benchmarks.middle_release DATA_DIR TREE IMAGE

Packages are taken whole, by the file lists of dpkg, in the order of their names; what dpkg and ldconfig wrote about
them comes with them. The image is made as `benchmarks/make-data.sh` makes the others. Needs root, and 1.2 GB for TREE.
"""

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_STATE = ("etc/ld.so.cache", "var/lib/dpkg/status")
_EPOCH = "1700000000"
_ID = "11111111-2222-3333-4444-555555555555"


def updated_packages(data: Path) -> list[str]:
    """Return the names of the packages that a middle release has as the new one has them."""
    old, new = (_versions(data / f"p1-{side}.packages") for side in ("old", "new"))
    differing = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [name for name in differing if not name.startswith("linux-")][::2]


def make_middle(data: Path, tree: Path, image: Path) -> list[str]:
    """Make the tree and the image; return the packages that are updated in them."""
    packages = updated_packages(data)
    subprocess.run(["cp", "-a", str(data / "p1-old"), str(tree)], check=True)
    for path in (path for package in packages for path in _paths_of(data / "p1-old", package)):
        place = tree / path
        if place.is_symlink() or place.is_file():
            place.unlink()
    new = data / "p1-new"
    for path in (*(path for package in packages for path in _paths_of(new, package)), *map(Path, _STATE)):
        source, place = new / path, tree / path
        if source.is_symlink() or source.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", "--remove-destination", str(source), str(place)], check=True)
        elif source.is_dir() and not place.exists():
            place.mkdir(parents=True)
            shutil.copystat(source, place)
    for folder, _folders, _files in os.walk(tree):
        os.utime(folder, (int(_EPOCH), int(_EPOCH)))
    with image.open("wb") as stream:
        stream.truncate(2 << 30)
    subprocess.run(
        [
            "mkfs.ext4", "-q", "-F", "-b", "4096", "-L", "root", "-U", _ID, "-O", "^has_journal", "-m", "0",
            "-E", f"hash_seed={_ID},lazy_itable_init=0,root_owner=0:0", "-d", str(tree), str(image),
        ],
        env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH, "E2FSPROGS_FAKE_TIME": _EPOCH, "LC_ALL": "C", "TZ": "UTC"},
        check=True,
    )  # fmt: skip
    return packages


def _versions(listing: Path) -> dict[str, str]:
    pairs = (line.split() for line in listing.read_text().splitlines() if line.strip())
    return dict(pairs)


def _paths_of(tree: Path, package: str) -> Iterator[Path]:
    """Yield what a package owns, relative to the tree: what dpkg keeps about it, and its files."""
    for kept in sorted((tree / "var/lib/dpkg/info").iterdir()):
        if kept.stem.partition(":")[0] == package:
            yield kept.relative_to(tree)
            if kept.suffix == ".list":
                yield from (Path(line.lstrip("/")) for line in kept.read_text().splitlines())


def main() -> None:
    """Make the middle release of a pair."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.middle_release", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="directory made by `make data`")
    parser.add_argument("tree", type=Path)
    parser.add_argument("image", type=Path)
    arguments = parser.parse_args()
    packages = make_middle(arguments.data, arguments.tree, arguments.image)
    print(f"{len(packages)} packages updated: {', '.join(packages)}")


if __name__ == "__main__":
    main()
