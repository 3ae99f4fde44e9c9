"""`overhaul serve` as a process: what it prints, how it stops, what a supervisor hears of it."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.asgi import Site
from tests.published import PublishedRepository
from tests.waiting import until

from overhaul.host.exchange import answers

# The descriptor has to be number 3, and LISTEN_PID the server's own process id.
_AS_A_SOCKET_UNIT = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedRepository:
    repository = PublishedRepository(tmp_path_factory.mktemp("served") / "repository")
    repository.publish("1.0", "b1", image_size=6_000_000)
    return repository


@contextmanager
def _serve(
    published: PublishedRepository, *options: str, environment: Mapping[str, str] = {}
) -> Iterator[tuple[subprocess.Popen[str], Site]]:
    command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(published.directory), "--port", "0"]
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process, _announced(process)
        finally:
            if process.poll() is None:
                process.terminate()


def _announced(process: subprocess.Popen[str]) -> Site:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "Serving" in line, process.stderr.read() if process.stderr else ""
    return Site(int(line.strip().rstrip("/").rpartition(":")[2]))


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_its_address_answers_and_stops_cleanly(published: PublishedRepository, stop: signal.Signals) -> None:
    with _serve(published) as (process, site):
        assert site.ask("/metadata/timestamp.json").body == published.file("metadata/timestamp.json")
        process.send_signal(stop)
        assert process.wait() == 0
        assert process.stdout is not None
        assert process.stdout.read() == "Stopped.\n"


def test_an_answer_under_way_ends_before_the_server_does(published: PublishedRepository) -> None:
    (pack,) = (published.public / "content/packs").rglob("*.pack")
    with _serve(published) as (process, site):
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
        connection.request("GET", "/" + pack.relative_to(published.public).as_posix())
        response = connection.getresponse()
        begun = response.read(1000)
        process.send_signal(signal.SIGTERM)
        assert begun + response.read() == pack.read_bytes()
        connection.close()
        assert process.wait() == 0


def test_two_workers_share_one_port_and_their_metrics(published: PublishedRepository) -> None:
    with _serve(published, "--workers", "2") as (process, site):
        for _ in range(10):
            assert site.ask("/metadata/timestamp.json").status == 200
        # A request is counted when its answer has gone, and it may be the other worker that tells.
        counted = 'overhaul_http_requests_total{method="GET",route="poll",status="200"} 10.0'
        until(lambda: site.ask("/metrics"), lambda answer: counted in answer.body.decode())
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_requests_are_logged_as_json_when_asked_for(published: PublishedRepository) -> None:
    with _serve(published, "--log-level", "info") as (process, site):
        site.ask("/metadata/%1b%5b2Jtimestamp.json")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    (request,) = [line for line in lines if line["event"] == "request"]

    assert (request["method"], request["status"], request["client"]) == ("GET", 404, "127.0.0.1")
    assert request["path"] == "/metadata/\x1b[2Jtimestamp.json"


def test_a_supervisor_hears_when_it_is_ready_and_when_it_stops(published: PublishedRepository) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor,
    ):
        address = str(Path(directory) / "notify")
        supervisor.bind(address)
        supervisor.settimeout(60)
        with _serve(published, environment={"NOTIFY_SOCKET": address}) as (process, _site):
            assert supervisor.recv(1000).startswith(b"READY=1\nSTATUS=Serving ")
            process.send_signal(signal.SIGTERM)
            assert supervisor.recv(1000) == b"STOPPING=1"


def test_it_takes_the_socket_that_a_socket_unit_hands_over(published: PublishedRepository) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(published.directory)]
        with subprocess.Popen(
            [sys.executable, "-c", _AS_A_SOCKET_UNIT, str(listening.fileno()), *command],
            pass_fds=[listening.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                site = _announced(process)
                assert site.port == port
                assert site.ask("/health/live").status == 200
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()


def test_a_port_that_is_taken_is_one_sentence_and_its_exit_code(published: PublishedRepository) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(published.directory)]
        ended = subprocess.run([*command, "--port", str(port)], capture_output=True, text=True, check=False)

    assert ended.returncode == 7
    assert ended.stderr.startswith(f"Error: 127.0.0.1 port {port} cannot be listened on (Address already in use)")


def test_a_directory_that_is_no_repository_is_refused_and_left_empty(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 7
    assert "overhaul init" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_desk_runs_beside_the_server_and_ends_with_it() -> None:
    # A Unix socket's path is short, pytest's are not always.
    with tempfile.TemporaryDirectory() as directory:
        published = PublishedRepository(Path(directory) / "repository")
        settings = published.directory / "overhaul.toml"
        switched_on = settings.read_text().replace("\nenabled = false\n", "\nenabled = true\n")
        settings.write_text(switched_on.replace("\nrun_desk = false\n", "\nrun_desk = true\n"))
        desk = published.directory / "server/desk/socket"
        with _serve(published) as (process, site):
            until(lambda: answers(desk))
            assert site.ask("/fleet").header("location") == "/login?next=%2Ffleet"
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
        assert not desk.exists()
