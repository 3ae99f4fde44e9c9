#!/usr/bin/env python3
"""Build an image hierarchy to try the servers on: manifests, with empty bundles and chunk stores beside them.

    ./make-image-hierarchy.py images

makes two releases of versioned images (stable ones, a release candidate, checkpoints) below `images/`, and daily
snapshots below `images-snapshots/`. The bundles are empty: a client learns of updates but cannot install them.
"""

import argparse
import json
from pathlib import Path

#: Release, version, build id, branch, and the checkpoint that is introduced and required.
_VERSIONS = [
    ("clockwerk", "3.0", "20190201.0", "stable", 0, 0),
    ("clockwerk", "3.1", "20190210.1", "stable", 1, 0),
    ("clockwerk", "3.2", "20190215.0", "stable", 0, 1),
    ("clockwerk", "3.3-rc1", "20190220.0", "beta", 0, 1),
    ("doom", "4.0", "20190301.0", "stable", 0, 0),
    ("doom", "4.1", "20190315.0", "stable", 0, 0),
]
_SNAPSHOTS = [
    ("clockwerk", "20190201.1", False),
    ("clockwerk", "20190201.9", True),
    ("clockwerk", "20190201.10", False),
    ("doom", "20190302.1", False),
]


def put_image(pool: Path, release: str, version: str, build_id: str, **more: object) -> None:
    """Put one image into the pool, where it is customary."""
    directory = pool / "steamos" / release / version / "amd64"
    directory.mkdir(parents=True, exist_ok=True)
    stem = directory / f"steamos-{release}-{build_id}-{version}-amd64-{more['variant']}"
    manifest = {
        "product": "steamos",
        "release": release,
        "arch": "amd64",
        "version": version,
        "buildid": build_id,
        **more,
    }
    Path(f"{stem}.raucb").touch()
    Path(f"{stem}.castr").mkdir(exist_ok=True)
    # The manifest comes last: from then on the image is offered.
    Path(f"{stem}.manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main() -> None:
    """Build both hierarchies."""
    parser = argparse.ArgumentParser(description="Build an image hierarchy to try the servers on.")
    parser.add_argument("directory", type=Path, help="directory of the versioned images")
    directory: Path = parser.parse_args().directory
    for release, version, build_id, branch, introduces, requires in _VERSIONS:
        checkpoints = {"introduces_checkpoint": introduces, "requires_checkpoint": requires}
        put_image(directory, release, version, build_id, variant="steamdeck", branch=branch, **checkpoints)
    snapshots = directory.with_name(directory.name + "-snapshots")
    for release, build_id, checkpoint in _SNAPSHOTS:
        put_image(snapshots, release, "snapshot", build_id, variant="devel", checkpoint=checkpoint)
    print(f"Images are in {directory} and {snapshots}")


if __name__ == "__main__":
    main()
