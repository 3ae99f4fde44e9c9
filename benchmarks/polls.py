"""Unchanged polls a second: `python -m benchmarks.polls`.

`overhaul serve` with as many workers as there are CPUs, and nginx with as many serving the same tree by its own
configuration (`deploy/nginx/overhaul.conf` is what people use; here only what concerns a static file is kept), are
asked in turns for `timestamp.json` with the entity tag they gave, on kept connections, by wrk on the same CPUs. The
load generator therefore takes its share of the very CPUs that are measured: rates are lower bounds. CPU of the servers
is read from the kernel before and after, so that what wrk and the neighbours take does not count in it.

Each server is asked twice a round: as fast as it answers, and at about the rate that is aimed for, where every
connection waits between its polls. The time an answer takes says something only there: with every connection always
waiting it is the number of connections by the rate, whatever the server does. Where neighbours keep the CPUs busy both
times are the kernel's queue; `--first` (as root) schedules servers and wrk before everything else on the machine.
"""

import argparse
import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.published import PublishedRepository
from tests.tools import need

from benchmarks import measure
from benchmarks.nginx import serving_files

_POLL = "/metadata/timestamp.json"
#: Polls a second that are aimed for, and the pause that makes the connections ask a little more often than that.
_AIM_PER_S = 5000
_PAUSE_OF_AIM = 0.9
_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round of polls showed."""

    polls_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    server_cpus: float


def main() -> None:
    """Run both in turns and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.polls", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (%(default)s)")
    parser.add_argument("--seconds", type=int, default=10, help="length of a round (%(default)s)")
    parser.add_argument("--connections", type=int, default=100, help="kept connections (%(default)s)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--first", action="store_true", help="before all other jobs of the machine; as root")
    arguments = parser.parse_args()
    if arguments.first:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with tempfile.TemporaryDirectory(prefix="bench-polls-") as scratch:
        published = PublishedRepository(Path(scratch) / "repository")
        published.publish("1.0", "b1")
        found: dict[str, list[Round]] = {}
        pause_ms = int(1000 * arguments.connections / _AIM_PER_S * _PAUSE_OF_AIM)
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        with (
            _overhaul(published.directory, arguments.workers) as ours,
            serving_files(published.public, Path(scratch), workers=arguments.workers) as theirs,
        ):
            servers = {"nginx": (theirs.process_id, theirs.port), "overhaul serve": ours}
            for number in range(arguments.rounds):
                for name in servers if number % 2 == 0 else reversed(servers):
                    for words, pause in (("as fast as it can", 0), (f"{_AIM_PER_S}/s asked for", pause_ms)):
                        done = _round(*servers[name], arguments.seconds, arguments.connections, pause_ms=pause)
                        found.setdefault(f"{name}, {words}", []).append(done)
    print(
        f"{arguments.rounds} rounds of {arguments.seconds} s in turns, medians; {arguments.workers} workers, "
        f"{arguments.connections} kept connections, {'before all other jobs, ' if arguments.first else ''}"
        f"wrk on the same {len(os.sched_getaffinity(0))} CPUs; "
        f"load before the run {load}, after it {', '.join(f'{value:.1f}' for value in os.getloadavg())}"
    )
    header = ("an unchanged poll", "polls/s", "worst round", "p50 ms", "p99 ms", "worst p99 ms", "CPU µs", "CPUs used")
    print(measure.table(header, [_row(name, rounds) for name, rounds in found.items()]))


def _row(name: str, rounds: list[Round]) -> list[str]:
    return [
        name,
        f"{statistics.median(one.polls_per_s for one in rounds):.0f}",
        f"{min(one.polls_per_s for one in rounds):.0f}",
        f"{statistics.median(one.p50_ms for one in rounds):.1f}",
        f"{statistics.median(one.p99_ms for one in rounds):.1f}",
        f"{max(one.p99_ms for one in rounds):.1f}",
        f"{statistics.median(one.cpu_us for one in rounds):.1f}",
        f"{statistics.median(one.server_cpus for one in rounds):.2f}",
    ]


def _round(pid: int, port: int, seconds: int, connections: int, *, pause_ms: int) -> Round:
    tag = _tag(port)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"function delay() return {pause_ms} end\n" if pause_ms else "")
        script.flush()
        return _asked(pid, port, seconds, connections, tag, script.name)


def _asked(pid: int, port: int, seconds: int, connections: int, tag: str, script: str) -> Round:
    family = [pid, *_children(pid)]
    before = sum(map(_cpu_s, family))
    told = subprocess.run(
        [
            need("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script,
            "-H", f"If-None-Match: {tag}", f"http://127.0.0.1:{port}{_POLL}",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout  # fmt: skip
    cpu_s = sum(map(_cpu_s, family)) - before
    if "Non-2xx" in told.replace("Non-2xx or 3xx", "Non-2xx") or "Socket errors" in told:
        raise RuntimeError(f"not every poll was answered well:\n{told}")
    count, length_s = re.search(r"(\d+) requests in ([\d.]+)s", told).groups()  # type: ignore[union-attr]
    return Round(
        polls_per_s=int(count) / float(length_s),
        p50_ms=_milliseconds(told, "50%"),
        p99_ms=_milliseconds(told, "99%"),
        cpu_us=1e6 * cpu_s / int(count),
        server_cpus=cpu_s / float(length_s),
    )


def _milliseconds(told: str, part: str) -> float:
    found = re.search(rf"{part}\s+([\d.]+)(us|ms|s)", told)
    assert found is not None, told
    return float(found[1]) * _UNITS_MS[found[2]]


def _tag(port: int) -> str:
    """Return the entity tag; make sure that a poll with it is answered by 304 without a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", _POLL)
    first = connection.getresponse()
    first.read()
    tag = first.headers["etag"]
    connection.request("GET", _POLL, headers={"If-None-Match": tag})
    again = connection.getresponse()
    if again.status != 304 or again.read():
        raise RuntimeError(f"an unchanged poll was answered with {again.status}")
    connection.close()
    return str(tag)


def _children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _overhaul(repository: Path, workers: int) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(repository), "--port", "0"]
    with subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline().strip().rstrip("/").rpartition(":")[2])
            for _ in range(50):  # so that every worker has started and answered
                _tag(port)
            yield process.pid, port
        finally:
            process.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
