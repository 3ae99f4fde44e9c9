"""Publishing to OSTree repositories: two commits and the delta between them, against `ostree` itself.

    python -m benchmarks.ostree DATA

DATA holds p1-old and p1-new. Both sides commit the same trees (without what OSTree has no objects for) and must come
to the same commit names. Whole processes are measured; runs alternate.
"""

import argparse
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.measure import Measured, in_turns, mebibytes, median, python, run, table

_BRANCH = "bench/main"
_TIMES = (1_700_000_000, 1_700_000_001)


def compare(old: Path, new: Path, scratch: Path, *, rounds: int) -> str:
    """Return the tables; raise AssertionError when the two sides disagree on a name."""
    trees = [_without_special_files(tree, scratch / tree.name) for tree in (old, new)]
    repositories = {"ostree": scratch / "theirs", "Overhaul": scratch / "ours"}
    commits: dict[str, list[list[Measured]]] = {name: [[], []] for name in repositories}
    for number in range(rounds):
        for repository in repositories.values():
            shutil.rmtree(repository, ignore_errors=True)
        run(["ostree", f"--repo={repositories['ostree']}", "init", "--mode=archive"])
        for step, (tree, at) in enumerate(zip(trees, _TIMES, strict=True)):
            done = in_turns(
                {
                    "ostree": partial(run, _their_commit(repositories["ostree"], tree, at)),
                    "Overhaul": partial(run, _our_commit(repositories["Overhaul"], tree, at)),
                },
                rounds=1,
            )
            for name, measured in done.items():
                commits[name][step].extend(measured)
            heads = [(place / "refs/heads" / _BRANCH).read_text() for place in repositories.values()]
            assert heads[0] == heads[1], f"the commits differ in round {number}"
    delta = in_turns(
        {
            "ostree": lambda: run(_their_delta(repositories["ostree"])),
            "Overhaul": lambda: run(python("benchmarks.ostree", "--delta", repositories["Overhaul"])),
        },
        rounds=1,
    )
    sizes = {name: _size(repository / "deltas") for name, repository in repositories.items()}
    return "\n\n".join(
        (
            _report("first commit", {name: median(steps[0]) for name, steps in commits.items()}, None),
            _report("second commit", {name: median(steps[1]) for name, steps in commits.items()}, None),
            _report("static delta", {name: median(measured) for name, measured in delta.items()}, sizes),
        )
    )


def _report(what: str, measured: dict[str, Measured], sizes: dict[str, int] | None) -> str:
    theirs, ours = measured["ostree"], measured["Overhaul"]
    header = [what, "wall s", "CPU s", "peak MiB", *(["MB"] if sizes else [])]
    rows = [
        [name, f"{one.wall_s:.1f}", f"{one.cpu_s:.1f}", mebibytes(one.memory_bytes)]
        + ([f"{sizes[name] / 1e6:.1f}"] if sizes else [])
        for name, one in measured.items()
    ]
    ratios = ["ratio", f"{ours.wall_s / theirs.wall_s:.2f}", f"{ours.cpu_s / theirs.cpu_s:.2f}"]
    ratios.append(f"{ours.memory_bytes / theirs.memory_bytes:.1f}")
    rows.append([*ratios, *([f"{sizes['Overhaul'] / sizes['ostree']:.2f}"] if sizes else [])])
    return table(header, rows)


def _without_special_files(tree: Path, copy: Path) -> Path:
    run(["cp", "-al", tree, copy])
    for folder, directories, names in os.walk(copy):
        for name in (*directories, *names):
            path = Path(folder, name)
            if stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                path.unlink()
    return copy


def _their_commit(repository: Path, tree: Path, at: int) -> Sequence[str]:
    return ["ostree", f"--repo={repository}", "commit", "-b", _BRANCH, f"--tree=dir={tree}", f"--timestamp=@{at}"]


def _our_commit(repository: Path, tree: Path, at: int) -> Sequence[str | Path]:
    options = ["--branch", _BRANCH, "--as-is", "--unsigned", "--deltas", "0", "--timestamp", str(at)]
    return python("overhaul", "ostree", "commit", tree, "--repository", repository, *options)


def _their_delta(repository: Path) -> Sequence[str]:
    commit = (repository / "refs/heads" / _BRANCH).read_text().strip()
    return ["ostree", f"--repo={repository}", "static-delta", "generate", "--min-fallback-size=0", f"--to={commit}"]


def _our_delta(repository: Path) -> None:
    from overhaul.dialects.ostree.archive import ArchiveRepository
    from overhaul.dialects.ostree.delta_make import make_static_delta
    from overhaul.progress import Silence

    opened = ArchiveRepository(repository)
    target = opened.resolve(_BRANCH)
    assert target is not None
    source = opened.commit(target).parent
    make_static_delta(opened, source, target, workers=len(os.sched_getaffinity(0)), progress=Silence())


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def main() -> None:
    """Run the comparison, or its part that has to be a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ostree", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="directory made by `make data`")
    parser.add_argument("--rounds", type=int, default=1, help="how often each side commits (%(default)s)")
    parser.add_argument("--delta", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.delta is not None:
        _our_delta(arguments.delta)
        return
    if arguments.data is None:
        parser.error("name the directory of the data")
    with tempfile.TemporaryDirectory(prefix="bench-ostree-", dir=arguments.data) as scratch:
        old, new = arguments.data / "p1-old", arguments.data / "p1-new"
        print(compare(old, new, Path(scratch), rounds=arguments.rounds))


if __name__ == "__main__":
    main()
