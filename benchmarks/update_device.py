"""A device's update from old to new: `casync extract` with a seed against our agent.

    python -m benchmarks.update_device DATA_DIR [--rounds N]

casync gets the old image as seed; it reads its store once from the local disk, which spares it all of the network, and
once over HTTP from nginx, as a device would. Our agent downloads from our own server over HTTP, verifies all
signatures, writes the idle slot, syncs it and reads every byte back from the medium. So that all do the same, casync's
output is synced and read, too. The agent runs in an environment of its own that holds what a device installs and
nothing else: libraries that only tests have would count as its memory. Bytes and requests are counted where the server
sends them: all response bodies, metadata and index included, with nothing placed on the device beforehand.
"""

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.measure import Measured, in_turns, mebibytes, median, python, run, table
from benchmarks.nginx import serving_files

_NAMES = ("--product=demo", "--variant=server", "--arch=amd64", "--channel=stable")


@dataclass(frozen=True)
class UpdateComparison:
    """The medians of both sides over all rounds, and what our agent says it used."""

    casync: Measured
    casync_over_http: Measured
    casync_bytes: int
    casync_requests: int
    overhaul: Measured
    #: The agent's own summary of its last run.
    outcome: dict[str, Any]
    #: Bytes the server sends for a poll when nothing is new, status line and headers included.
    poll_bytes: int
    poll_status: int


def compare(old: Path, new: Path, scratch: Path, *, rounds: int) -> UpdateComparison:
    """Publish both images for both sides, then update in turns.

    Raises:
        RuntimeError: A side did not produce the new image.
    """
    store, index = scratch / "theirs.castr", scratch / "new.caibx"
    run(["casync", "make", f"--store={store}", scratch / "old.caibx", old])
    held = {path.name for path in store.rglob("*.cacnk")}
    run(["casync", "make", f"--store={store}", index, new])
    fetched = [path.stat().st_size for path in store.rglob("*.cacnk") if path.name not in held]
    repository = scratch / "repository"
    run(python("overhaul", "init", repository, "--demo-keys", "--product=demo"))
    for image, version in ((old, "1.0.0"), (new, "1.1.0")):
        run(
            python(
                "overhaul",
                "publish",
                image,
                "--repository",
                repository,
                *_NAMES,
                f"--version={version}",
                "--build-id=1",
            )
        )
    agent = _device_environment(scratch / "environment")
    output = scratch / "theirs.img"

    def run_casync(store: str | Path) -> Measured:
        output.unlink(missing_ok=True)
        script = f"casync extract --store={store} --seed={old} {index} {output} && sync {output} && cat {output}"
        return run(["sh", "-c", script])

    with serving(repository) as url, serving_files(scratch, scratch) as nginx:

        def run_overhaul() -> Measured:
            device = make_device(scratch / "device", url=url, old=old, root=repository / "root.json")
            # The slot a device runs from was written long ago.
            os.sync()
            return run([agent, "device", "update", "--config", device / "device.toml"])

        sides = {
            "casync": lambda: run_casync(store),
            "casync over HTTP": lambda: run_casync(f"{nginx.url}/{store.name}"),
            "overhaul": run_overhaul,
        }
        found = in_turns(sides, rounds=rounds)
        for image in (output, scratch / "device/b.img"):
            if subprocess.run(["cmp", str(image), str(new)], check=False).returncode:
                raise RuntimeError(f"{image} is not the new image")
        device = make_device(scratch / "device", url=url, old=old, root=repository / "root.json")
        done = subprocess.run(
            [str(agent), "device", "update", "--config", str(device / "device.toml"), "--json"],
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        poll_status, poll_bytes = _poll(url)
    return UpdateComparison(
        casync=median(found["casync"]),
        casync_over_http=median(found["casync over HTTP"]),
        casync_bytes=sum(fetched) + index.stat().st_size,
        casync_requests=len(fetched) + 1,
        overhaul=median(found["overhaul"]),
        outcome=json.loads(done.stdout),
        poll_bytes=poll_bytes,
        poll_status=poll_status,
    )


def _device_environment(directory: Path) -> Path:
    """Install what a device needs into an environment of its own; return its `overhaul`."""
    project = Path(__file__).parents[1]
    run([sys.executable, "-m", "venv", directory])
    run([directory / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", project])
    return directory / "bin/overhaul"


def make_device(directory: Path, *, url: str, old: Path, root: Path) -> Path:
    """Make a device that runs the old image and updates from `url`; return its directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    subprocess.run(["cp", "--sparse=always", str(old), str(directory / "a.img")], check=True)
    with (directory / "b.img").open("wb") as stream:
        stream.truncate(old.stat().st_size)
    shutil.copy(root, directory / "root.json")
    run(
        python(
            "overhaul", "device", "init", "--config", directory / "device.toml", *_NAMES, f"--url={url}",
            "--allow-http", "--slot=a=a.img", "--slot=b=b.img", "--boot=file", "--state-directory=state",
            "--version=1.0.0", "--build-id=1",
        )
    )  # fmt: skip
    return directory


@contextmanager
def serving(repository: Path) -> Iterator[str]:
    """Run our own server for the length of a block, and yield its address."""
    command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(repository), "--port=0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        document = ""
        for line in server.stdout or ():
            document += line
            if line.startswith("}"):
                break
        yield json.loads(document)["url"]
    finally:
        server.terminate()
        server.wait(timeout=30)


def _poll(url: str) -> tuple[int, int]:
    """Ask for the pointer twice as a device does; return the second answer's status and size on the wire."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    connection.request("GET", "/metadata/timestamp.json")
    first = connection.getresponse()
    first.read()
    connection.request("GET", "/metadata/timestamp.json", headers={"If-None-Match": first.headers["ETag"]})
    second = connection.getresponse()
    body = second.read()
    head = f"HTTP/1.1 {second.status} {second.reason}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in second.getheaders())
    connection.close()
    return second.status, len(head) + 2 + len(body)


def report(found: UpdateComparison) -> str:
    """Return the comparison as a table with its ratios."""
    received, requests = found.outcome["bytes_received"], found.outcome["requests"]

    def ratio(name: str, theirs: Measured) -> list[str]:
        return [
            name,
            f"{found.overhaul.wall_s / theirs.wall_s:.2f}",
            f"{found.overhaul.cpu_s / theirs.cpu_s:.2f}",
            f"{found.overhaul.memory_bytes / theirs.memory_bytes:.2f}",
            f"{received / found.casync_bytes:.3f}",
            f"{requests / found.casync_requests:.4f}",
        ]

    rows = [
        _row("casync extract, local store", found.casync, found.casync_bytes, found.casync_requests),
        _row("casync extract, HTTP", found.casync_over_http, found.casync_bytes, found.casync_requests),
        _row("overhaul device update, HTTP", found.overhaul, received, requests),
        ratio("ratio to the local store", found.casync),
        ratio("ratio over HTTP", found.casync_over_http),
    ]
    own_peak = mebibytes(found.outcome["peak_memory_bytes"])
    return (
        table(["update a slot from old to new", "wall s", "CPU s", "peak MiB", "MB to fetch", "requests"], rows)
        + f"\nthe agent's own peak (VmHWM): {own_peak} MiB; an unchanged poll: "
        f"status {found.poll_status}, {found.poll_bytes} bytes from the server"
    )


def _row(name: str, one: Measured, fetched_bytes: int, requests: int) -> list[str]:
    figures = [f"{one.wall_s:.1f}", f"{one.cpu_s:.1f}", mebibytes(one.memory_bytes)]
    return [name, *figures, f"{fetched_bytes / 1e6:.1f}", str(requests)]


def main() -> None:
    """Compare on the standard pair and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update_device", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="directory made by `make data`")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="update-device-", dir=arguments.data) as scratch:
        pair = (arguments.data / "p1-old.ext4", arguments.data / "p1-new.ext4")
        print(report(compare(*pair, Path(scratch), rounds=arguments.rounds)))


if __name__ == "__main__":
    main()
