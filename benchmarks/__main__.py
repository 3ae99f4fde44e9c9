"""Every comparison with the peers in one run: `make bench DATA=dir`.

Prints the tables for docs/benchmarks.md, with the conditions they were taken under.
"""

import argparse
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from benchmarks import make_delta, publish_image, update_device
from overhaul.content.chunker import KERNEL_NAME


def _conditions(rounds: int) -> str:
    casync = subprocess.run(["casync", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{rounds} rounds in turns, medians; {len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}, kernel {KERNEL_NAME}, casync {casync}; load before the run {load}"
    )


def main() -> None:
    """Run all comparisons on the standard pair."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="directory made by `make data`")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (%(default)s)")
    arguments = parser.parse_args()
    old, new = arguments.data / "p1-old.ext4", arguments.data / "p1-new.ext4"
    for image in (old, new):
        if not image.exists():
            parser.error(f"{image} is missing; make it with `make data DATA={arguments.data}`")
    print(_conditions(arguments.rounds), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.data) as scratch:
        places = [Path(scratch) / name for name in ("publish", "delta", "update")]
        for place in places:
            place.mkdir()
        image = publish_image.compare(new, places[0], rounds=arguments.rounds)
        print(publish_image.report(image), end="\n\n", flush=True)
        delta = make_delta.compare(old, new, places[1], rounds=1)
        print(make_delta.report(delta), end="\n\n", flush=True)
        print(update_device.report(update_device.compare(old, new, places[2], rounds=arguments.rounds)))


if __name__ == "__main__":
    main()
