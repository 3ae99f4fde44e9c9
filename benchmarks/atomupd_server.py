"""The atomupd dialect's server side: `python -m benchmarks.atomupd_server`.

A pool of 1 000 images in three branches is made, served by `steamos-atomupd-server` and written out by
`steamos-atomupd-staticserver`, each as a process of its own. The server's CPU is read from the kernel before and after
its queries, so that what its client takes does not count. The floor of the engine, an application that answers with
prepared bytes, is measured in the same run.

The peer's own programs are not packaged anywhere, so they cannot run here; its figures are those that were measured
once on this class of machine (1.15 to 2.8 ms a query, 5.5 s to write an unchanged tree), and are printed as such.
"""

import argparse
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from tests.atomupd_pools import put_thousand, write_configuration

_BRANCHES = ("stable", "rc", "beta")
_PEER_QUERY_MS = (1.15, 2.8)
_PEER_UNCHANGED_S = 5.5
_HELLO = """
import sys, uvicorn
async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})
print("Listening on 127.0.0.1 port", sys.argv[1], flush=True)
uvicorn.run(hello, host="127.0.0.1", port=int(sys.argv[1]), lifespan="off", access_log=False,
            server_header=False, log_level="warning")
"""


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.atomupd_server", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="images in the pool (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-atomupd-") as scratch:
        work = Path(scratch)
        pool = work / "pool"
        put_thousand(pool, count=arguments.images, branches=_BRANCHES)
        configuration = write_configuration(work / "server.conf", pool, Branches=" ".join(_BRANCHES))
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        print(f"{arguments.images} images, {len(_BRANCHES)} branches, {arguments.rounds} rounds; load before: {load}\n")
        _static(work, configuration, arguments.rounds)
        _queries(configuration, arguments.rounds)


def _static(work: Path, configuration: Path, rounds: int) -> None:
    program = [sys.executable, "-m", "overhaul.dialects.atomupd.static_cli", "-c", str(configuration)]
    bare = [sys.executable, "-c", "pass"]
    first: list[float] = []
    unchanged: list[float] = []
    start: list[float] = []
    for _round in range(rounds):
        tree = work / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        start.append(_cpu_of(bare, tree))
        first.append(_cpu_of(program, tree))
        unchanged.append(_cpu_of(program, tree))
    files = sum(1 for path in tree.rglob("*") if path.is_file())
    begin = statistics.median(start)
    print(f"static tree, {files} files            CPU s beyond interpreter start ({begin:.3f} s)")
    for name, values in (("first time", first), ("nothing changed", unchanged)):
        seconds = sorted(value - begin for value in values)
        print(f"  {name:<24} min {seconds[0]:.3f}  median {statistics.median(seconds):.3f}  max {seconds[-1]:.3f}")
    ratio = _PEER_UNCHANGED_S / (statistics.median(unchanged) - begin)
    print(f"  peer, nothing changed        {_PEER_UNCHANGED_S} (stated, not run here): {ratio:.0f} times as much\n")


def _queries(configuration: Path, rounds: int) -> None:
    with _running([sys.executable, "-c", _HELLO, str(_free_port())]) as (pid, port, _seconds):
        hello = [_measured(pid, port, [b"/"] * 3000) for _round in range(rounds)]
    distinct = list(_paths())
    program = [sys.executable, "-m", "overhaul.dialects.atomupd.server_cli", "-c", str(configuration)]
    cold: list[float] = []
    warm: list[float] = []
    closing: list[float] = []
    starts: list[float] = []
    for _round in range(rounds):
        with _running(program) as (pid, port, seconds):
            starts.append(seconds)
            cold.append(_measured(pid, port, distinct))
            warm.append(_measured(pid, port, distinct))
            closing.append(_measured(pid, port, distinct, keeps=False))
    print("dynamic query                    CPU ms an answer, in the server's process")
    for name, values in (
        ("engine alone", hello),
        ("each asked once", cold),
        ("asked again", warm),
        ("a connection each", closing),
    ):
        print(f"  {name:<24} min {min(values):.4f}  median {statistics.median(values):.4f}  max {max(values):.4f}")
    low, high = (figure / statistics.median(cold) for figure in _PEER_QUERY_MS)
    stated = f"{_PEER_QUERY_MS[0]} to {_PEER_QUERY_MS[1]} (stated)"
    print(f"  peer                         {stated}: {low:.0f} to {high:.0f} times as much")
    print(f"\nstart to first answer            wall s: min {min(starts):.2f}  median {statistics.median(starts):.2f}")


def _paths() -> Iterator[bytes]:
    """Yield a question for each image of the pool's first years and each branch, as an early client asks it."""
    for number in range(1000):
        date = f"20{20 + number // 336:02d}{1 + number // 28 % 12:02d}{1 + number % 28:02d}"
        for branch in _BRANCHES:
            fields = {
                "product": "steamos",
                "release": "holo",
                "variant": "steamdeck",
                "arch": "amd64",
                "version": f"3.{number // 50}.{number % 50}",
                "buildid": f"{date}.1",
                "estimated_size": "0",
                "branch": _BRANCHES[number % 3],
                "default_update_branch": branch,
            }
            yield f"/?{urlencode(fields)}".encode()


def _cpu_of(argv: Sequence[str], directory: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, cwd=directory, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def _running(argv: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """Run a server; yield its process, its port, and the seconds until it answered."""
    begun = time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = next(int(line.split()[-1]) for line in process.stdout if line.startswith("Listening"))
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
            _measured(process.pid, port, [b"/"])
            yield process.pid, port, time.monotonic() - begun
        finally:
            process.send_signal(signal.SIGINT)
            process.stdout.close()


def _measured(pid: int, port: int, paths: Sequence[bytes], *, keeps: bool = True) -> float:
    """Ask for all `paths`, one after the other; return the milliseconds of CPU an answer took in process `pid`."""
    before = _cpu_ns(pid)
    connection: socket.socket | None = None
    for path in paths:
        if connection is None:
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        ending = b"" if keeps else b"Connection: close\r\n"
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + ending + b"\r\n")
        _read_answer(connection)
        if not keeps:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    return (_cpu_ns(pid) - before) / 1e6 / len(paths)


def _read_answer(connection: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _blank, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)


def _cpu_ns(pid: int) -> int:
    """Return what all threads of a process have used, in nanoseconds."""
    total = 0
    for schedule in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(schedule.read_text().split()[0])
    return total


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
