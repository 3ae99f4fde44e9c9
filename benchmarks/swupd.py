"""A swupd repository of 20 000 files and 150 MB, and its second version: `python -m benchmarks.swupd SOURCE WORK`.

The tree is taken from SOURCE (a root file system such as `/usr`), the same for the same source: files up to 600 kB in
a random order until both numbers are reached; where the source has too few they are taken again, each with a line of
its own at the end. The second version changes one file of twenty in a few places, removes one of a hundred and adds
one of a hundred. `--files 100000` builds a tree of another size in the same proportions.

CPU is that of the builder's process, all threads together; on a machine that does other work it says more than the
wall clock, which is why the load stands beside each line; a session to which Linux was told to give more
(`echo -12 > /proc/self/autogroup`, as root, after `setsid`) comes near to a machine of its own. Nothing of a peer is
run here: their figures for this size stand in docs/benchmarks.md with their source.
"""

import argparse
import os
import random
import resource
import shutil
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from overhaul.content.tree import read_files, scan_tree
from overhaul.dialects.swupd.build import Build, Request, building
from overhaul.dialects.swupd.bundles import ONLY_CORE
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.published import PublishedTree
from overhaul.dialects.swupd.trees import VersionFromTree
from overhaul.progress import Silence

_FILES = 20_000
_BYTES_EACH = 7500
_LARGEST = 600_000
_CHANGED, _REMOVED, _ADDED = 0.05, 0.01, 0.01


@dataclass(frozen=True)
class Timed:
    """What one version took."""

    wall_s: float
    cpu_s: float
    size: int
    peak_memory_bytes: int
    #: Of the minute before it ended, this process included.
    load: float


def make_trees(source: Path, work: Path, *, files: int) -> tuple[Path, Path]:
    """Write the trees of both versions below `work`; return them."""
    chooser = random.Random(20_000)
    found = sorted(path for path in source.rglob("*") if not path.is_symlink() and path.is_file())
    sized = [(path, path.stat().st_size) for path in found]
    sized = [(path, size) for path, size in sized if size <= _LARGEST]
    chooser.shuffle(sized)
    first, second = work / "first", work / "second"
    names: list[str] = []
    total = 0
    for turn in count():
        for path, size in sized:
            # Large files only as long as the sum stays in step with the count.
            if size > _BYTES_EACH and total > _BYTES_EACH * (len(names) + 1):
                continue
            name = str(Path(f"again-{turn}" if turn else "") / path.relative_to(source))
            (first / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, first / name)
            if turn:
                with (first / name).open("ab") as stream:
                    stream.write(b"once more %d\n" % turn)
            names.append(name)
            total += size
            if len(names) == files:
                break
        if len(names) == files:
            break
    shutil.copytree(first, second)
    print(f"{len(names)} files, {total / 1e6:.0f} MB from {source}", flush=True)
    changed, removed, added = (round(share * files) for share in (_CHANGED, _REMOVED, _ADDED))
    picked = chooser.sample(names, changed + removed + added)
    for name in picked[:changed]:
        data = bytearray((second / name).read_bytes())
        for _ in range(3):
            place = chooser.randrange(len(data) + 1)
            data[place : place + chooser.randrange(40)] = chooser.randbytes(chooser.randrange(60))
        (second / name).write_bytes(data + b"!")
    for name in picked[changed : changed + removed]:
        (second / name).unlink()
    for name in picked[changed + removed :]:
        (second / f"{name}.added").write_bytes((second / name).read_bytes() + b"added")
    return first, second


def build(web: Path, root: Path, *, version: int, previous: int, workers: int) -> Timed:
    """Build one version as `overhaul swupd process` does, but for the pointer."""
    wall, cpu = time.monotonic(), time.process_time()
    options = BuildOptions(workers=workers)
    with building(web):
        request = Request(version=version, previous=previous, timestamp=1_700_000_000)
        made = Build(PublishedTree(web), request, options, Silence())
        tree = VersionFromTree(made, root, scan_tree(root), ONLY_CORE)
        read_files(root, tree.listed, [tree.take], workers=workers)
        done = tree.finish({})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Timed(time.monotonic() - wall, time.process_time() - cpu, done.size, peak, os.getloadavg()[0])


def main() -> None:
    """Build both versions and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swupd", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a directory with files to choose from")
    parser.add_argument("work", type=Path, help="a directory for trees and repository; emptied")
    parser.add_argument("--files", type=int, default=_FILES)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    for name in ("first", "second", "www"):
        shutil.rmtree(arguments.work / name, ignore_errors=True)
    first, second = make_trees(arguments.source, arguments.work, files=arguments.files)
    web = arguments.work / "www"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{arguments.workers} workers, load before the run {load}\n")
    print("| version | wall | CPU | load | published | peak memory |\n|---|---|---|---|---|---|")
    for label, root, version, previous in (("first", first, 10, 0), ("second, packs", second, 20, 10)):
        timed = build(web, root, version=version, previous=previous, workers=arguments.workers)
        print(
            f"| {label} | {timed.wall_s:.1f} s | {timed.cpu_s:.1f} s | {timed.load:.1f} | {timed.size / 1e6:.0f} MB "
            f"| {timed.peak_memory_bytes >> 20} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
