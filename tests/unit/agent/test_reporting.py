"""Reports: what they hold is what the server takes, and nothing that goes wrong with them is noticed."""

import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tests.devices import Bench, release_id

from overhaul.agent.reporting import HttpReporter, NoReports, ReportOutcome, report
from overhaul.server.reports import DeviceReport, Outcome
from overhaul.transfer.fetcher import UnreachableError


class Collector(HTTPServer):
    """Keeps what is posted, and answers with a status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: list[tuple[str, bytes]] = []
        self.status = 204
        #: What is sent before and as the answer, in pieces.
        self.before: Iterable[bytes] = ()
        self.body: Iterable[bytes] = ()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/api/reports"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.headers["Content-Type"], body))
        with suppress(OSError):
            self.wfile.writelines(self.server.before)
            self.send_response(self.server.status)
            self.end_headers()
            self.wfile.writelines(self.server.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Stay silent."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.mark.parametrize("outcome", ReportOutcome)
def test_the_server_takes_what_a_device_sends(collector: Collector, tmp_path: Path, outcome: ReportOutcome) -> None:
    bench = Bench(tmp_path)
    report(
        bench.device,
        channel="stable",
        running=release_id("1.0"),
        sought=release_id("2.0") if outcome is not ReportOutcome.FAILED else None,
        outcome=outcome,
        seconds=1.23456,
        error=UnreachableError(url="https://u.test/secret", reason="x") if outcome is ReportOutcome.FAILED else None,
    )
    (document,) = bench.reporter.sent
    HttpReporter(url=collector.url).send(document)
    ((kind, body),) = collector.posted
    assert kind == "application/json"
    taken = DeviceReport.model_validate_json(body)
    assert taken.outcome is Outcome(outcome.value)
    assert (taken.from_version, taken.bytes_received, taken.requests) == ("1.0", 1234, 3)
    # The class of an error is told, and nothing of its text, which may hold addresses and paths.
    assert "secret" not in json.dumps(json.loads(body))


def test_an_answer_of_any_length_is_not_read(collector: Collector) -> None:
    collector.status = 200
    collector.body = pieces = iter([b"x" * 65536] * 1024)
    assert HttpReporter(url=collector.url).deliver({"outcome": "installed"})
    assert next(pieces, None) is not None


def test_an_answer_that_never_begins_is_given_up(collector: Collector) -> None:
    collector.before = pieces = iter([b"HTTP/1.1 100 Continue\r\n\r\n" * 1000] * 1024)
    assert not HttpReporter(url=collector.url).deliver({"outcome": "installed"})
    assert next(pieces, None) is not None


@pytest.mark.parametrize("status", [404, 500, 302])
def test_what_the_server_answers_does_not_matter(collector: Collector, status: int) -> None:
    collector.status = status
    HttpReporter(url=collector.url).send({"outcome": "installed"})
    assert len(collector.posted) == 1


def test_a_server_that_is_not_there_does_not_matter() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", "http://", "no address"):
        HttpReporter(url=url).send({"outcome": "installed"})


def test_a_report_may_go_through_a_proxy(collector: Collector) -> None:
    proxy = collector.url.removesuffix("/api/reports")
    HttpReporter(url="http://reports.test/api/reports", proxy=proxy).send({"outcome": "installed"})
    assert len(collector.posted) == 1


def test_nothing_is_sent_without_consent() -> None:
    NoReports().send({"outcome": "installed"})
