"""Devices of one site: what each fetches from the repository and from the neighbours that updated before it.

    python -m benchmarks.share DATA_DIR [--uplink 1000000] [--cap 1000000] [--repository DIR]

Every device runs the old image and updates over a line of --uplink bytes a second to `overhaul serve` (the cap of its
own configuration); a device that has updated gives with `overhaul device share` at most --cap bytes a second. The
first fetches alone, the second from the first, the third and fourth at the same time from both. All are processes of
their own on loopback; bytes are those that the agents counted.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import python, run, table
from benchmarks.update_device import make_device, serving

_NAMES = ("--product=demo", "--variant=server", "--arch=amd64", "--channel=stable")


@dataclass(frozen=True)
class Cost:
    """What one device's update took."""

    name: str
    wall_s: float
    repository_bytes: int
    requests: int
    neighbour_bytes: int


@dataclass(frozen=True)
class Site:
    """Where devices are made."""

    scratch: Path
    url: str
    old: Path
    new: Path
    root: Path
    uplink_bytes_per_s: int
    cap_bytes_per_s: int

    def device(self, name: str, *, asks: Sequence[str] = ()) -> Path:
        """Make a device that gives on a port of its own and asks the neighbours at these addresses."""
        directory = make_device(self.scratch / name, url=self.url, old=self.old, root=self.root)
        configuration = directory / "device.toml"
        told = {
            "listen": '"127.0.0.1:0"',
            "neighbours": json.dumps(list(asks)),
            "max_bytes_per_s": str(self.cap_bytes_per_s),
        }
        head, shares, tail = configuration.read_text().partition("[share]\n")
        head = re.sub(r"(?m)^# max_bytes_per_s = .*$", f"max_bytes_per_s = {self.uplink_bytes_per_s}", head)
        for key, text in told.items():
            tail = re.sub(rf"(?m)^{key} = .*$", f"{key} = {text}", tail, count=1)
        configuration.write_text(head + shares + tail)
        return directory

    def update(self, *devices: Path) -> list[Cost]:
        """Update devices at the same time.

        Raises:
            RuntimeError: One did not end well, or does not hold the new image.
        """
        begin = time.perf_counter()
        command = python("overhaul", "device", "update", "--json", "--config")
        running = [
            (device, subprocess.Popen([*command, device / "device.toml"], stdout=subprocess.PIPE)) for device in devices
        ]
        costs = []
        for device, process in running:
            told, _nothing = process.communicate()
            wall_s = time.perf_counter() - begin
            if process.returncode or subprocess.run(["cmp", device / "b.img", self.new], check=False).returncode:
                raise RuntimeError(f"{device.name} did not come to the new image")
            outcome = json.loads(told)
            costs.append(
                Cost(
                    device.name, wall_s, outcome["bytes_received"], outcome["requests"], outcome["neighbour_bytes"]
                )
            )  # fmt: skip
        return costs


@contextmanager
def giving(device: Path) -> Iterator[str]:
    """Let a device give for the length of a block; yield its address."""
    command = python("overhaul", "device", "share", "--config", device / "device.toml")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        words = (process.stdout.readline() if process.stdout else "").rstrip(".\n").split()
        try:
            yield f"{words[2]}:{words[4]}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def compare(site: Site) -> list[Cost]:
    """Update four devices, the last two at the same time; return what each took."""
    first = site.device("first")
    costs = site.update(first)
    with ExitStack() as opened:
        givers = [opened.enter_context(giving(first))]
        second = site.device("second", asks=givers)
        costs += site.update(second)
        givers.append(opened.enter_context(giving(second)))
        costs += site.update(site.device("third", asks=givers), site.device("fourth", asks=givers))
        for name in ("third", "fourth"):
            shutil.rmtree(site.scratch / name)
    return costs


def publish(repository: Path, old: Path, new: Path) -> None:
    """Publish both images."""
    run(python("overhaul", "init", repository, "--demo-keys", "--product=demo"))
    for image, version in ((old, "1.0.0"), (new, "1.1.0")):
        names = (*_NAMES, f"--version={version}", "--build-id=1")
        run(python("overhaul", "publish", image, "--repository", repository, *names))


def report(costs: Sequence[Cost]) -> str:
    """Return what each device took as a table."""
    rows = [
        [cost.name, f"{cost.wall_s:.0f}", f"{cost.repository_bytes / 1e6:.2f}", str(cost.requests),
         f"{cost.neighbour_bytes / 1e6:.1f}"]
        for cost in costs
    ]  # fmt: skip
    return table(["device", "seconds", "MB from the repository", "requests", "MB from neighbours"], rows)


def main() -> None:
    """Measure on the standard pair and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.share", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="directory made by `make data`")
    parser.add_argument("--uplink", type=int, default=1_000_000, help="bytes a second of the line (%(default)s)")
    parser.add_argument("--cap", type=int, default=1_000_000, help="bytes a second a neighbour gives (%(default)s)")
    parser.add_argument("--repository", type=Path, help="where both images are published already")
    parser.add_argument("--scratch", type=Path, help="directory for devices (DATA_DIR)")
    options = parser.parse_args()
    old, new = options.data / "p1-old.ext4", options.data / "p1-new.ext4"
    with tempfile.TemporaryDirectory(prefix="share-", dir=options.scratch or options.data) as scratch:
        repository = options.repository
        if repository is None:
            repository = Path(scratch) / "repository"
            publish(repository, old, new)
        load = os.getloadavg()[0]
        with serving(repository) as url:
            site = Site(
                scratch=Path(scratch),
                url=url,
                old=old,
                new=new,
                root=repository / "root.json",
                uplink_bytes_per_s=options.uplink,
                cap_bytes_per_s=options.cap,
            )
            print(report(compare(site)))
    print(f"line {options.uplink} bytes/s, neighbours give {options.cap} bytes/s each, load {load:.1f}")


if __name__ == "__main__":
    main()
