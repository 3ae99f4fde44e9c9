"""A device's pull of an update: `ostree pull` against ours, object by object and by static delta.

    python -m benchmarks.ostree_pull DATA_DIR [--rounds N] [--repository DIR]

DATA_DIR holds the trees `p1-old` and `p1-new`. The real `ostree` publishes both (or they are taken from an archive
repository with two commits on the branch `p1` and a delta between them), nginx serves on loopback, and each run begins
with a bare repository that holds the old commit and is kept to the end: ext4 makes files slowly where others were just
deleted. Both sides verify every checksum, store owner and modes, and sync.
Afterwards the real `ostree fsck` reads what ours stored, and both hold the same objects.
"""

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import Measured, in_turns, mebibytes, median, python, run, table

_BRANCH = "p1"


def ostree(*arguments: str | Path) -> str:
    """Run the real `ostree`."""
    return subprocess.run(["ostree", *map(str, arguments)], check=True, capture_output=True, text=True).stdout.strip()


def publish(data: Path, repository: Path) -> None:
    """Commit both trees with the real `ostree`, with a delta that holds every object."""
    ostree("init", f"--repo={repository}", "--mode=archive")
    skipped = repository.with_name("skipped")
    skipped.write_text("/dev\n")
    for name, moment in (("p1-old", 1_700_000_000), ("p1-new", 1_710_000_000)):
        ostree(
            "commit", f"--repo={repository}", f"--branch={_BRANCH}", f"--timestamp=@{moment}", "--no-xattrs",
            f"--skip-list={skipped}", data / name,
        )  # fmt: skip
    ostree("static-delta", f"--repo={repository}", "generate", "--min-fallback-size=0", _BRANCH)
    ostree("summary", f"--repo={repository}", "--update")


def pull_ours(repository: Path, *, uses_deltas: bool) -> None:
    """Pull with our updater's code, in this process, over the network as the updater opens it."""
    import time

    import msgspec

    from overhaul.dialects.ostree.device.barerepo import BareRepository
    from overhaul.dialects.ostree.device.pull import PullSettings, Surroundings, pull
    from overhaul.dialects.ostree.device.remote import load_remote
    from overhaul.dialects.ostree.device.settings import UpdateSettings
    from overhaul.dialects.ostree.device.staging import free_space_bytes
    from overhaul.dialects.ostree.device.wiring import Network

    settings = UpdateSettings()
    settings = msgspec.structs.replace(settings, network=msgspec.structs.replace(settings.network, allow_http=True))
    opened = BareRepository(repository)
    remote = load_remote(opened, "r")
    known = opened.resolve("r", _BRANCH)
    pulled = pull(
        opened,
        remote,
        _BRANCH,
        surroundings=Surroundings(
            open_fetcher=Network(settings, sleep=time.sleep, threads=settings.network.connections).opener(remote),
            boot_id="benchmark",
            free_space=free_space_bytes,
        ),
        settings=PullSettings(connections=settings.network.connections, uses_deltas=uses_deltas),
        known_timestamp=None,
        bases=[known] if known else [],
    )
    print(pulled, file=sys.stderr)


def compare(repository: Path, scratch: Path, *, rounds: int) -> list[list[str]]:
    """Return a row of figures for each way of pulling.

    Raises:
        RuntimeError: The two sides did not store the same.
    """
    # Not above: our side runs in this module, too, and is no server.
    from benchmarks.nginx import serving_files

    new = ostree("rev-parse", f"--repo={repository}", _BRANCH)
    old = ostree("rev-parse", f"--repo={repository}", f"{_BRANCH}^")
    template = scratch / "template"
    ostree("init", f"--repo={template}", "--mode=bare")
    ostree("pull-local", f"--repo={template}", "--remote=r", "--untrusted", repository, old)
    held = template / "refs/remotes/r" / _BRANCH
    held.parent.mkdir(parents=True, exist_ok=True)
    held.write_text(old + "\n")
    numbers = itertools.count()
    stored: dict[str, set[str]] = {}
    with serving_files(repository, scratch) as server:
        ostree("remote", f"--repo={template}", "add", "--no-gpg-verify", "r", server.url)

        def measured(name: str, command: list[str | Path]) -> Measured:
            client = scratch / f"client-{next(numbers)}"
            subprocess.run(["cp", "-al", template, client], check=True)
            # What is replaced must not be shared with the template.
            shutil.copy(template / "config", client / "config.copy")
            (client / "config.copy").replace(client / "config")
            subprocess.run(["sync"], check=True)
            taken = run([str(part).replace("CLIENT", str(client)) for part in command])
            if ostree("rev-parse", f"--repo={client}", f"r:{_BRANCH}") != new:
                raise RuntimeError(f"{name} did not pull {new}")
            stored[name] = {str(path.relative_to(client)) for path in client.glob("objects/*/*")}
            if name.startswith("ours") and stored[name]:
                ostree("fsck", f"--repo={client}", "--quiet")
            return taken

        theirs: list[str | Path] = ["ostree", "pull", "--repo=CLIENT", "r", _BRANCH]
        ours = python("benchmarks.ostree_pull", "--pull", "CLIENT")
        commands = {
            "ostree pull, objects": [*theirs, "--disable-static-deltas"],
            "ours, objects": [*ours, "--no-deltas"],
            "ostree pull, delta": theirs,
            "ours, delta": ours,
        }
        runs = {name: partial(measured, name, command) for name, command in commands.items()}
        found = in_turns(runs, rounds=rounds)
    if stored["ours, objects"] != stored["ostree pull, objects"]:
        raise RuntimeError("the two sides did not store the same objects")
    return _rows({name: median(runs) for name, runs in found.items()})


def _rows(medians: dict[str, Measured]) -> list[list[str]]:
    rows = []
    for name, one in medians.items():
        peer = medians[f"ostree pull, {name.rpartition(', ')[2]}"]
        rows.append(
            [
                name,
                f"{one.wall_s:.2f}",
                f"{one.wall_s / peer.wall_s:.2f}",
                f"{one.cpu_s:.2f}",
                f"{one.cpu_s / peer.cpu_s:.2f}",
                mebibytes(one.memory_bytes),
            ]
        )
    return rows


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repository", type=Path)
    parser.add_argument("--scratch", type=Path, help="where to work; on the file system to be measured")
    parser.add_argument("--pull", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--no-deltas", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pull is not None:
        pull_ours(options.pull, uses_deltas=not options.no_deltas)
        return
    with tempfile.TemporaryDirectory(prefix="ostree-pull-", dir=options.scratch) as name:
        scratch = Path(name)
        repository = options.repository or scratch / "repository"
        if options.repository is None:
            publish(options.data, repository)
        rows = compare(repository.absolute(), scratch, rounds=options.rounds)
    print(table(["pull of the update", "wall s", "ratio", "CPU s", "ratio", "peak MiB"], rows))


if __name__ == "__main__":
    main()
