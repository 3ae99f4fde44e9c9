"""A device that skipped a release: a chain of deltas over it, against one direct delta and the smallest full form.

    python -m benchmarks.update_chain OLD MIDDLE NEW [--scratch DIR]

One repository has all three images, each with a delta from the one before; another has the old and the new one with a
direct delta. A device that runs the old image is updated from each, over HTTP from our own server, and says which way
it took and what that cost. `benchmarks.middle_release` makes a middle image for the standard pair.
"""

import argparse
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Measured, mebibytes, python, run, table
from benchmarks.update_device import make_device, serving
from overhaul.content.cache import ContentCache
from overhaul.content.packranges import full_form_bytes
from overhaul.content.published import PublishedFiles
from overhaul.publishing.opening import open_repository
from overhaul.release.record import Release
from overhaul.repository.signed import read_published
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings

_NAMES = ("--product=demo", "--variant=server", "--arch=amd64", "--channel=stable")


@dataclass(frozen=True)
class ChainComparison:
    """What each way costs a device, by what it says itself."""

    #: Of each delta, what is fetched of it.
    delta_bytes: dict[tuple[str, str], int]
    full_form_bytes: int
    chain: Measured
    chain_outcome: dict[str, Any]
    direct: Measured
    direct_outcome: dict[str, Any]


def compare(old: Path, middle: Path, new: Path, scratch: Path) -> ChainComparison:
    """Publish the three images and update a device both ways.

    Raises:
        RuntimeError: A device did not end with the new image.
    """
    chained, directly = scratch / "chained", scratch / "directly"
    for repository in (chained, directly):
        run(python("overhaul", "init", repository, "--demo-keys", "--product=demo"))
        _publish(repository, old, "1.0.0")
    _publish(chained, middle, "1.1.0", "1.0.0")
    _publish(chained, new, "1.2.0", "1.1.0")
    _publish(directly, new, "1.2.0", "1.0.0")
    chain, chain_outcome, full_form = _update(scratch, chained, old, new)
    direct, direct_outcome, _full_form = _update(scratch, directly, old, new)
    return ChainComparison(
        delta_bytes={
            (delta.source_version, release.id.version): delta.fetched_size(range(len(delta.rebuilds)))
            for repository in (chained, directly)
            for release in _releases(repository)
            for delta in release.image.deltas
        },
        full_form_bytes=full_form,
        chain=chain,
        chain_outcome=chain_outcome,
        direct=direct,
        direct_outcome=direct_outcome,
    )


def _publish(repository: Path, image: Path, version: str, *sources: str) -> None:
    deltas = [f"--delta-from={source}" for source in sources] or ["--no-delta"]
    names = (*_NAMES, f"--version={version}", "--build-id=1")
    run(python("overhaul", "publish", image, "--repository", repository, *names, *deltas))


def _update(scratch: Path, repository: Path, old: Path, new: Path) -> tuple[Measured, dict[str, Any], int]:
    """Return what an update took, what the device says of it, and the bytes of the smallest full form."""
    said = scratch / "said.json"
    with serving(repository) as url:
        device = make_device(scratch / "device", url=url, old=old, root=repository / "root.json")
        os.sync()
        command = python("overhaul", "device", "update", "--config", device / "device.toml", "--json")
        measured = run(["sh", "-c", 'out=$1; shift; exec "$@" > "$out"', "sh", said, *command])
        image = _releases(repository)[-1].image
        fetcher = open_fetcher(FetchSettings(allow_http=True))
        files = PublishedFiles(fetcher=fetcher, base_url=url, image=image, cache=ContentCache(None))
        full_form = full_form_bytes(image, files.index(), files.tables())
    if subprocess.run(["cmp", str(device / "b.img"), str(new)], check=False).returncode:
        raise RuntimeError(f"{device / 'b.img'} is not the new image")
    return measured, json.loads(said.read_text()), full_form


def _releases(repository: Path) -> list[Release]:
    """Return what is published, the oldest first."""
    published = read_published(open_repository(repository).storage, now=datetime.now(UTC))
    return sorted(published.releases.values(), key=lambda release: release.id.version)


def report(found: ChainComparison) -> str:
    """Return the comparison as a table."""
    smallest = found.full_form_bytes
    rows = [
        [name, outcome["way"], *_cost(one, outcome), f"{outcome['bytes_received'] / smallest:.3f}"]
        for name, one, outcome in (
            ("chain over the middle release", found.chain, found.chain_outcome),
            ("direct delta", found.direct, found.direct_outcome),
        )
    ]
    head = ["old to new by", "way taken", "MB fetched", "requests", "wall s", "CPU s", "peak MiB", "× full form"]
    sizes = ", ".join(f"{source} to {target} {size / 1e6:.2f}" for (source, target), size in found.delta_bytes.items())
    return f"{table(head, rows)}\nsmallest full form: {smallest / 1e6:.1f} MB; deltas, MB of each: {sizes}"


def _cost(one: Measured, outcome: dict[str, Any]) -> list[str]:
    return [
        f"{outcome['bytes_received'] / 1e6:.2f}",
        str(outcome["requests"]),
        f"{one.wall_s:.1f}",
        f"{one.cpu_s:.1f}",
        mebibytes(outcome["peak_memory_bytes"]),
    ]


def main() -> None:
    """Compare on three images and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update_chain", description=__doc__.splitlines()[0])
    for name in ("old", "middle", "new"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--scratch", type=Path, help="where the repository and the device are made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="update-chain-", dir=arguments.scratch) as scratch:
        print(report(compare(arguments.old, arguments.middle, arguments.new, Path(scratch))))


if __name__ == "__main__":
    main()
