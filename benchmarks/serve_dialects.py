"""The dialects through all of `overhaul serve`: `python -m benchmarks.serve_dialects`.

One server process with everything switched on: a signed repository, an atomupd pool of 1 000 images in three branches,
and attended sysupgrade with a finished build (the world of the tests, whose upstream and builder are stand-ins). CPU is
read from the kernel before and after the requests of one keep-alive connection, so that what the client takes does not
count. The poll of `timestamp.json` stands beside them as the cheapest answer of the same process.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from tests.asu_world import BOARD, STABLE, TARGET, UPSTREAM, asu_world
from tests.atomupd_pools import put_thousand, write_configuration
from tests.published import PublishedRepository

from overhaul.builds.opening import Works
from overhaul.builds.settings import load_settings
from overhaul.server.database.engine import Database

_BRANCHES = ("stable", "rc", "beta")
_BUILD = {"version": STABLE, "target": TARGET, "profile": BOARD, "packages": ["vim", "tmux"]}
_QUERY = {
    "product": "steamos", "release": "holo", "variant": "steamdeck", "arch": "amd64", "version": "3.1.0",
    "buildid": "20200201.1", "branch": "stable",
}  # fmt: skip


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_dialects", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (%(default)s)")
    parser.add_argument("--requests", type=int, default=3000, help="requests in a round (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as scratch:
        directory = Path(scratch) / "repository"
        build = _prepare(directory, Path(scratch))
        with _server(directory) as (process_id, port):
            load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
            print(f"CPU milliseconds of the server for each request; load before: {load}")
            posted = json.dumps(_BUILD).encode()
            for title, method, path, body in (
                ("poll of timestamp.json", "GET", "/metadata/timestamp.json", b""),
                ("atomupd query", "GET", f"/updates?{urlencode(_QUERY)}", b""),
                ("build, asked by hash", "GET", f"/api/v1/build/{build}", b""),
                ("build, asked by request", "POST", "/api/v1/build", posted),
                ("overview.json", "GET", "/json/v1/overview.json", b""),
                ("a device", "GET", f"/json/v1/releases/{STABLE}/targets/{TARGET}/{BOARD}.json", b""),
                ("releases as JSON (ours)", "GET", "/api/v1/releases", b""),
            ):
                values = [
                    _round(process_id, port, arguments.requests, method, path, body)
                    for _number in range(arguments.rounds + 1)
                ][1:]  # the first one warms up
                median = statistics.median(values)
                print(f"  {title:<26} min {min(values):.4f}  median {median:.4f}  max {max(values):.4f}")


def _prepare(directory: Path, scratch: Path) -> str:
    """Make the repository, the pool and a finished build; return the build's name."""
    PublishedRepository(directory).publish("1.0", "b1")
    put_thousand(scratch / "pool", branches=_BRANCHES)
    pool = write_configuration(scratch / "pool.conf", scratch / "pool", Branches=" ".join(_BRANCHES))
    settings = directory / "overhaul.toml"
    text = settings.read_text().replace("atomupd_pools = []", f"atomupd_pools = [{json.dumps(str(pool))}]")
    text = text.replace("build_workers = 1", "build_workers = 0")
    settings.write_text(text + f'\n[asu]\nenabled = true\nupstream_url = "{UPSTREAM}"\n')
    builds = directory / "builds.toml"
    builds.write_text("[openwrt]\nenabled = true\n")
    works = Works(settings=load_settings(builds), base=directory)
    with asu_world(works.directory, queue=works.queue(Database(works.database_url()))) as world:
        asked = world.post("/api/v1/build", _BUILD)
        world.build_next(manifest={f"package-{number}": "1.2.3-r4" for number in range(150)})
        return str(asked.json["request_hash"])


def _round(process_id: int, port: int, requests: int, method: str, path: str, body: bytes) -> float:
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    before = _cpu_s(process_id)
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as stream:
        for _number in range(requests):
            connection.sendall(head + body)
            status, length = stream.readline(), 0
            while (line := stream.readline()) != b"\r\n":
                name, _colon, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            stream.read(length)
            assert status.startswith(b"HTTP/1.1 200"), (path, status)
    return 1000 * (_cpu_s(process_id) - before) / requests


def _cpu_s(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _server(directory: Path) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(directory), "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--log-level", "error"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            text += process.stdout.readline()
        told = json.loads(text)
        try:
            yield process.pid, int(told["url"].rstrip("/").rpartition(":")[2])
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
