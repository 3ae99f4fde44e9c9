"""Making the delta between two images: `xdelta3` against ours; ours also proves each piece it makes.

    python -m benchmarks.make_delta DATA_DIR [--rounds N]

xdelta3 gets a source window of 512 MiB, as it must on images of 2 GiB to find what moved.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Measured, in_turns, mebibytes, median, python, run, table
from overhaul.content.delta.make import make_delta
from overhaul.progress import Silence


@dataclass(frozen=True)
class DeltaComparison:
    """The medians of both sides over all rounds, and the sizes of their deltas."""

    xdelta3: Measured
    overhaul: Measured
    xdelta3_bytes: int
    overhaul_bytes: int


def compare(old: Path, new: Path, scratch: Path, *, rounds: int) -> DeltaComparison:
    """Run both in turns and return the medians."""
    theirs, ours = scratch / "theirs.xdelta", scratch / "ours.delta"

    def run_xdelta3() -> Measured:
        return run(["xdelta3", "-e", "-f", "-B", str(512 << 20), "-s", old, new, theirs])

    def run_overhaul() -> Measured:
        return run(python("benchmarks.make_delta", "--make", old, new, ours))

    found = in_turns({"xdelta3": run_xdelta3, "overhaul": run_overhaul}, rounds=rounds)
    return DeltaComparison(
        xdelta3=median(found["xdelta3"]),
        overhaul=median(found["overhaul"]),
        xdelta3_bytes=theirs.stat().st_size,
        overhaul_bytes=ours.stat().st_size,
    )


def report(found: DeltaComparison) -> str:
    """Return the comparison as a table with its ratios."""
    sides = (
        ("xdelta3", found.xdelta3, found.xdelta3_bytes),
        ("Overhaul delta", found.overhaul, found.overhaul_bytes),
    )
    rows = [
        [name, f"{one.wall_s:.1f}", f"{one.cpu_s:.1f}", mebibytes(one.memory_bytes), f"{size / 1e6:.1f}"]
        for name, one, size in sides
    ]
    rows.append(
        [
            "ratio",
            f"{found.overhaul.wall_s / found.xdelta3.wall_s:.2f}",
            f"{found.overhaul.cpu_s / found.xdelta3.cpu_s:.2f}",
            f"{found.overhaul.memory_bytes / found.xdelta3.memory_bytes:.2f}",
            f"{found.overhaul_bytes / found.xdelta3_bytes:.2f}",
        ]
    )
    return table(["make a delta between two images", "wall s", "CPU s", "peak MiB", "delta MB"], rows)


def main() -> None:
    """Compare on the standard pair and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_delta", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="directory made by `make data`")
    parser.add_argument("--rounds", type=int, default=1, help="how often each side runs (%(default)s)")
    parser.add_argument("--make", type=Path, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        old, new, out = arguments.make
        make_delta(old, new, out, workers=len(os.sched_getaffinity(0)), progress=Silence())
        return
    if arguments.data is None:
        parser.error("name the directory that holds the data; `make data DATA=dir` makes one")
    with tempfile.TemporaryDirectory(prefix="make-delta-", dir=arguments.data) as scratch:
        pair = (arguments.data / "p1-old.ext4", arguments.data / "p1-new.ext4")
        print(report(compare(*pair, Path(scratch), rounds=arguments.rounds)))


if __name__ == "__main__":
    main()
