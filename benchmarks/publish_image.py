"""Cutting, hashing and compressing an image: `casync make` against ours, at equal chunk ids.

    python -m benchmarks.publish_image DATA_DIR [--image NAME] [--rounds N]

Both read the same image from a warm page cache and write an index and all its compressed chunks: casync a store,
we a pack and its frame table. Neither syncs. The run fails when the two indexes differ in a single byte.
"""

import argparse
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Measured, in_turns, mebibytes, median, python, run, table
from overhaul.content.chunker import KERNEL_NAME
from overhaul.content.frames import write_frames
from overhaul.content.index import write_index
from overhaul.content.ingest import ingest_image
from overhaul.progress import Silence

STANDARD_IMAGE = "p1-old.ext4"


@dataclass(frozen=True)
class Comparison:
    """The medians of both sides over all rounds."""

    casync: Measured
    overhaul: Measured
    casync_stored_bytes: int
    overhaul_stored_bytes: int

    @property
    def wall_ratio(self) -> float:
        """Our wall time as a part of casync's."""
        return self.overhaul.wall_s / self.casync.wall_s

    @property
    def cpu_ratio(self) -> float:
        """Our CPU time as a part of casync's."""
        return self.overhaul.cpu_s / self.casync.cpu_s


def compare(image: Path, scratch: Path, *, rounds: int) -> Comparison:
    """Run both on `image` in turns and return the medians.

    Raises:
        RuntimeError: The two did not cut the image into the same chunks.
    """
    store, theirs = scratch / "theirs.castr", scratch / "theirs.caibx"
    pack, ours, frames = scratch / "ours.pack", scratch / "ours.caibx", scratch / "ours.frames"

    def run_casync() -> Measured:
        shutil.rmtree(store, ignore_errors=True)
        return run(["casync", "make", f"--store={store}", theirs, image])

    def run_overhaul() -> Measured:
        pack.unlink(missing_ok=True)
        return run(python("benchmarks.publish_image", "--ingest", image, pack, ours, frames))

    _warm(image)
    found = in_turns({"casync": run_casync, "overhaul": run_overhaul}, rounds=rounds)
    if ours.read_bytes() != theirs.read_bytes():
        raise RuntimeError(f"casync and Overhaul cut {image} differently")
    return Comparison(
        casync=median(found["casync"]),
        overhaul=median(found["overhaul"]),
        casync_stored_bytes=sum(path.stat().st_size for path in store.rglob("*.cacnk")),
        overhaul_stored_bytes=pack.stat().st_size + frames.stat().st_size,
    )


def _warm(image: Path) -> None:
    with image.open("rb", buffering=0) as stream:
        while stream.read(1 << 22):
            pass


def _ingest(image: Path, pack: Path, index: Path, frames: Path) -> None:
    """Do our side once, as the process that is measured."""
    workers = len(os.sched_getaffinity(0))
    made = ingest_image(image, pack, known=frozenset(), workers=workers, progress=Silence())
    index.write_bytes(write_index(made.index))
    frames.write_bytes(write_frames(made.frames))


def _row(name: str, measured: Measured, stored_bytes: int) -> list[str]:
    return [
        name,
        f"{measured.wall_s:.2f}",
        f"{measured.cpu_s:.2f}",
        mebibytes(measured.memory_bytes),
        f"{stored_bytes / 1e6:.1f}",
    ]


def report(found: Comparison) -> str:
    """Return the comparison as a table with its ratios."""
    rows = [
        _row("casync make", found.casync, found.casync_stored_bytes),
        _row("Overhaul ingest", found.overhaul, found.overhaul_stored_bytes),
        [
            "ratio",
            f"{found.wall_ratio:.2f}",
            f"{found.cpu_ratio:.2f}",
            f"{found.overhaul.memory_bytes / found.casync.memory_bytes:.2f}",
            f"{found.overhaul_stored_bytes / found.casync_stored_bytes:.3f}",
        ],
    ]
    return table(["cut, hash, compress an image", "wall s", "CPU s", "peak MiB", "stored MB"], rows)


def main() -> None:
    """Compare on the standard image and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish_image", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="directory made by `make data`")
    parser.add_argument("--image", default=STANDARD_IMAGE, help="image inside the directory (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (%(default)s)")
    parser.add_argument("--ingest", type=Path, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ingest:
        _ingest(*arguments.ingest)
        return
    if arguments.data is None:
        parser.error("name the directory that holds the data; `make data DATA=dir` makes one")
    image = arguments.data / arguments.image
    with tempfile.TemporaryDirectory(prefix="publish-image-", dir=arguments.data) as scratch:
        found = compare(image, Path(scratch), rounds=arguments.rounds)
    print(report(found))
    cpus = len(os.sched_getaffinity(0))
    print(f"{arguments.rounds} rounds in turns, {cpus} CPUs, kernel: {KERNEL_NAME}, equal chunk ids")


if __name__ == "__main__":
    main()
