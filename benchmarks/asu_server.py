"""The asu dialect's server side: `python -m benchmarks.asu_server`.

One server process on loopback with the embedded SQLite queue, and with PostgreSQL where requests are queued. Its CPU
is read from the kernel before and after each row, so that what the client takes does not count; the floor of the
engine, an application that answers with two prepared bytes, is a row of the same run. The catalogue is small and the
image is made up; both cost a cached answer nothing. The peer's own server cannot run here (it needs Redis and its
containers); its 2.0 to 2.3 ms were measured once on this class of machine and are printed as stated.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.asu_world import BOARD, STABLE, TARGET, asu_world
from tests.postgresql import postgresql

from overhaul.builds.database import upgrade
from overhaul.builds.leasing import LeaseQueue
from overhaul.builds.records import QueueLimits
from overhaul.host.listening import listen
from overhaul.server.database.engine import Database, sqlite_url
from overhaul.server.process import one_worker

_PEER_MS = "2.0 to 2.3 (stated, not run here)"
_TODAY = {"version": STABLE, "target": TARGET, "profile": BOARD, "packages": ["vim", "tmux"], "diff_packages": True}
_SEED = {"distro": "openwrt", "version": STABLE, "target": TARGET, "board": BOARD, "packages": ["vim"]}


async def _hello(_scope: object, _receive: object, send: "object") -> None:
    assert callable(send)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asu_server", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (%(default)s)")
    parser.add_argument("--requests", type=int, default=2000, help="requests of one measurement (%(default)s)")
    parser.add_argument("--database", default="", help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=("engine", "asu"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve, arguments.database)
        return
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{arguments.rounds} rounds of {arguments.requests} requests; load before: {load}\n")
    print("CPU ms a request, in the server's process")
    with _server("engine") as (process_id, port, _names):
        _row("engine alone", process_id, port, arguments, "GET", "/", b"")
        _row("engine, head and body apart", process_id, port, arguments, "POST", "/", b"{}")
    with _server("asu") as (process_id, port, names):
        today, seed = json.dumps(_TODAY).encode(), json.dumps(_SEED).encode()
        for title, method, path, body in (
            ("build, asked by hash", "GET", f"/api/v1/build/{names['today']}", b""),
            ("build, asked by request", "POST", "/api/v1/build", today),
            ("2019 build, by hash", "GET", f"/api/build-request/{names['seed']}", b""),
            ("2019 build, by request", "POST", "/api/build-request", seed),
            ("the same, head and body apart", "POST", "/api/build-request", seed),
            ("overview.json", "GET", "/json/v1/overview.json", b""),
            ("a device", "GET", f"/json/v1/releases/{STABLE}/targets/{TARGET}/{BOARD}.json", b""),
            ("distros of 2019", "GET", "/api/distros", b""),
        ):
            _row(title, process_id, port, arguments, method, path, body)
        print(f"  peer, cached build           {_PEER_MS}")
        print("\n200 different requests queued, 8 connections")
        _accept("SQLite", process_id, port)
    with postgresql(durable=True) as address, _server("asu", address) as (process_id, port, _names):
        _accept("PostgreSQL", process_id, port)


def _row(
    title: str, process_id: int, port: int, arguments: argparse.Namespace, method: str, path: str, body: bytes
) -> None:
    values = []
    for _round in range(arguments.rounds + 1):
        before = _cpu_s(process_id)
        # Head and body in one piece, as curl sends small ones; http.client would send two.
        is_apart = title.endswith("apart")
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as stream:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _number in range(arguments.requests):
                for piece in (head, body) if is_apart else (head + body,):
                    connection.sendall(piece)
                status, length = stream.readline(), 0
                while (line := stream.readline()) != b"\r\n":
                    name, _colon, value = line.partition(b":")
                    length = int(value) if name == b"content-length" else length
                stream.read(length)
                assert status.startswith(b"HTTP/1.1 200"), (path, status)
        values.append(1000 * (_cpu_s(process_id) - before) / arguments.requests)
    values = values[1:]  # the first one warms up
    median = statistics.median(values)
    print(f"  {title:<30} min {min(values):.4f}  median {median:.4f}  max {max(values):.4f}")


def _accept(title: str, process_id: int, port: int) -> None:
    """Send 200 requests for different images from 8 connections and print how long they took to be queued."""

    def send(numbers: range) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for number in numbers:
            body = json.dumps({**_TODAY, "rootfs_size_mb": number + 1})
            connection.request("POST", "/api/v1/build", body=body)
            response = connection.getresponse()
            response.read()
            assert response.status == 202, response.status
        connection.close()

    began, before = time.perf_counter(), _cpu_s(process_id)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, [range(start, 200, 8) for start in range(8)]))
    wall, cpu = time.perf_counter() - began, _cpu_s(process_id) - before
    print(f"  {title:<30} wall {wall:.2f} s  CPU of the server {cpu:.2f} s")


def _cpu_s(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _server(kind: str, database: str = "") -> Iterator[tuple[int, int, dict[str, str]]]:
    command = [sys.executable, "-m", "benchmarks.asu_server", "--serve", kind, "--database", database]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        try:
            yield process.pid, told.pop("port"), told
        finally:
            process.terminate()
            process.wait()


def _serve(kind: str, address: str) -> None:
    listening = listen("127.0.0.1", 0)
    told: dict[str, object] = {"port": listening.getsockname()[1]}
    if kind == "engine":
        print(json.dumps(told), flush=True)
        one_worker(lambda: _hello, lambda: None).run(sockets=[listening])
        return
    with tempfile.TemporaryDirectory(prefix="bench-asu-") as scratch:
        database = Database(address or sqlite_url(Path(scratch) / "queue.sqlite3"))
        upgrade(database)
        queue = LeaseQueue(database, limits=QueueLimits(waiting=1000, waiting_of_client=1000))
        with asu_world(Path(scratch), queue=queue) as world:
            told["today"] = world.post("/api/v1/build", _TODAY).json["request_hash"]
            world.build_next(manifest={f"package-{number}": "1.2.3-r4" for number in range(150)})
            told["seed"] = world.post("/api/build-request", _SEED).json["request_hash"]
            world.build_next()
            print(json.dumps(told), flush=True)
            one_worker(lambda: world.app, lambda: None).run(sockets=[listening])


if __name__ == "__main__":
    main()
