"""The application as a client sees it, before a repository that was really published."""

import http.client
import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from tests.asgi import running
from tests.published import PublishedRepository
from tests.waiting import PATIENCE_S

from overhaul.server import keeping
from overhaul.server.api import MAX_REPORT_BYTES
from overhaul.server.app import create_app
from overhaul.server.settings import ServerSettings

REPORT = {
    "report_id": "0" * 32,
    "product": "alpha",
    "variant": "desk",
    "arch": "amd64",
    "channel": "stable",
    "from_version": "1.0",
    "from_build_id": "b1",
    "to_version": "1.1",
    "to_build_id": "b2",
    "outcome": "installed",
    "bytes_received": 1000,
    "requests": 12,
    "seconds": 4.5,
}


@pytest.fixture
def published(tmp_path: Path) -> PublishedRepository:
    repository = PublishedRepository(tmp_path / "repository")
    repository.publish("1.0", "b1")
    return repository


@pytest.fixture
def application(published: PublishedRepository) -> ASGIApp:
    return create_app(ServerSettings.of_repository(published.directory), clock=published.clock)


@pytest.fixture
def client(application: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    # The server also looks at what is published by itself, and then not between two lines of a test.
    monkeypatch.setattr(keeping, "_EVERY_S", 86400.0)
    with TestClient(application, client=("10.0.0.1", 1)) as running_client:
        yield running_client


def test_an_unchanged_poll_costs_at_most_400_bytes_from_the_server(application: ASGIApp) -> None:
    with running(application) as site:
        etag = site.ask("/metadata/timestamp.json").header("etag")
        lines = ("GET /metadata/timestamp.json HTTP/1.1", "Host: x", f"If-None-Match: {etag}", "Connection: close")
        with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE_S) as connection:
            connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 304 ")
    assert len(answer) <= 400, answer
    assert b"\r\ndate: " in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_new_publish_is_served_and_listed_at_once(client: TestClient, published: PublishedRepository) -> None:
    etag = client.get("/metadata/timestamp.json").headers["etag"]
    listed = client.get("/api/v1/releases").headers["etag"]

    published.publish("1.1", "b2", checkpoint=True)

    assert client.get("/metadata/timestamp.json", headers={"if-none-match": etag}).status_code == 200
    answer = client.get("/api/v1/releases", headers={"if-none-match": listed})
    assert [(one["version"], one["checkpoint"]) for one in answer.json()["releases"]] == [("1.1", True), ("1.0", False)]
    assert client.get("/api/v1/releases", headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_releases_and_channels_can_be_narrowed_down(client: TestClient, published: PublishedRepository) -> None:
    published.publish("1.1", "b2", channel="beta")

    assert [one["version"] for one in client.get("/api/v1/releases?channel=beta").json()["releases"]] == ["1.1"]
    assert client.get("/api/v1/releases?product=other").json() == {"releases": []}
    assert [one["channel"] for one in client.get("/api/v1/channels").json()["channels"]] == ["beta", "stable"]
    assert client.get("/api/v1/channels?product=other").json() == {"channels": []}


def test_a_published_state_that_cannot_be_read_leaves_the_last_one_listed(
    client: TestClient, published: PublishedRepository
) -> None:
    client.get("/api/v1/releases")
    published.publish("1.1", "b2")
    newest = max((published.public / "metadata").glob("*.snapshot.json"), key=lambda file: int(file.name.split(".")[0]))
    newest.unlink()

    assert [one["version"] for one in client.get("/api/v1/releases").json()["releases"]] == ["1.0"]
    health = client.get("/health/ready").json()
    assert health["status"] == "degraded"
    assert newest.name in health["warnings"][0]


def test_readiness_follows_the_signatures(client: TestClient, published: PublishedRepository) -> None:
    assert client.get("/health/ready").json()["status"] == "ready"

    published.now += 2 * 86400 - 600
    assert client.get("/health/ready").json()["status"] == "degraded"
    published.now += 601
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "unready")
    assert client.get("/health/live").status_code == 200
    published.refresh()
    assert client.get("/health/ready").json()["status"] == "ready"


def test_a_report_is_stored_once_however_often_it_is_sent(client: TestClient) -> None:
    assert [client.post("/api/v1/reports", json=REPORT).status_code for _ in range(2)] == [202, 202]

    summary = client.get("/api/v1/reports/summary").json()
    assert summary["total"] == 1
    assert summary["outcomes"]["installed"] == 1
    assert summary["releases"][0]["mean_bytes_received"] == 1000


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"report_id": "not random"}, "report_id"),
        ({"product": "Alpha Beta"}, "product"),
        ({"from_version": "1.0\n"}, "from_version"),
        ({"outcome": "exploded"}, "outcome"),
        ({"bytes_received": -1}, "bytes_received"),
        ({"seconds": 1e300}, "seconds"),
        ({"error": "<script>"}, "error"),
        ({"serial_number": "4711"}, "serial_number"),
        ({"to_version": None}, "body"),
    ],
)
def test_a_report_with_a_wrong_field_is_refused_by_the_name_of_the_field(
    client: TestClient, change: dict[str, object], place: str
) -> None:
    answer = client.post("/api/v1/reports", json={**REPORT, **change})

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][-1] == place
    assert client.get("/api/v1/reports/summary").json()["total"] == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_report_is_refused(client: TestClient, body: bytes) -> None:
    assert client.post("/api/v1/reports", content=body).status_code == 422


def test_a_large_report_is_refused_whether_its_length_is_told_or_not(application: ASGIApp) -> None:
    large = b"{" + b" " * MAX_REPORT_BYTES
    with running(application) as site:
        assert site.ask("/api/v1/reports", method="POST", body=large).status == 413
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=PATIENCE_S)
        connection.request("POST", "/api/v1/reports", body=iter([large]), encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})  # fmt: skip
        assert connection.getresponse().status == 413
        connection.close()


def test_one_address_may_not_send_reports_without_end(client: TestClient, published: PublishedRepository) -> None:
    settings = ServerSettings.of_repository(published.directory)
    statuses = [
        client.post("/api/v1/reports", json={**REPORT, "report_id": f"{number:032x}"}).status_code
        for number in range(settings.reports_per_minute + 1)
    ]

    assert statuses == [202] * settings.reports_per_minute + [429]
    refused = client.post("/api/v1/reports", json=REPORT)
    assert int(refused.headers["retry-after"]) >= 1
    published.now += 60
    assert client.post("/api/v1/reports", json=REPORT).status_code == 202


def test_reports_can_be_switched_off(published: PublishedRepository) -> None:
    file = published.directory / "overhaul.toml"
    file.write_text(file.read_text().replace("reports = true", "reports = false"))
    with TestClient(create_app(ServerSettings.of_repository(published.directory), clock=published.clock)) as client:
        assert client.post("/api/v1/reports", json=REPORT).status_code == 404
        assert 'id="reports"' not in client.get("/").text


def test_a_broken_database_stops_reports_and_nothing_else(client: TestClient, published: PublishedRepository) -> None:
    # The server writes by itself when it has started.
    with sqlite3.connect(published.directory / "server" / "overhaul.sqlite3", timeout=PATIENCE_S) as database:
        database.execute("DROP TABLE device_reports")
    database.close()

    answer = client.post("/api/v1/reports", json=REPORT)
    assert answer.status_code == 500
    assert "sqlite" not in answer.text
    assert client.get("/api/v1/reports/summary").status_code == 503
    assert client.get("/health/ready").json()["status"] == "degraded"
    assert client.get("/metadata/timestamp.json").status_code == 200
    assert client.get("/").status_code == 200


def test_metrics_count_requests_bytes_and_reports_and_tell_the_expiry(
    client: TestClient, published: PublishedRepository
) -> None:
    etag = client.get("/metadata/timestamp.json").headers["etag"]
    client.get("/metadata/timestamp.json", headers={"if-none-match": etag})
    client.get("/nowhere")
    client.post("/api/v1/reports", json=REPORT)
    published.now += 3600

    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    requests = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["overhaul_http_requests"].samples
    }
    assert requests["poll", "200"] == requests["poll", "304"] == requests["page", "404"] == 1
    sizes = {sample.labels["route"]: sample.value for sample in families["overhaul_http_body_bytes"].samples}
    assert sizes["poll"] == len(published.file("metadata/timestamp.json"))
    assert [(one.labels, one.value) for one in families["overhaul_device_reports"].samples] == [
        ({"outcome": "installed"}, 1)
    ]
    expiry = {one.labels["role"]: one.value for one in families["overhaul_metadata_expiry_seconds"].samples}
    assert expiry["timestamp"] == 2 * 86400 - 3600
    assert [one.value for one in families["overhaul_publish_age_seconds"].samples] == [3600]


def test_the_interface_describes_itself(client: TestClient) -> None:
    document = client.get("/api/v1/openapi.json").json()

    schema = document["paths"]["/api/v1/reports"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(REPORT) <= set(schema["properties"])
    assert json.dumps(document).count("cdn") == 0


def test_names_from_outside_never_become_markup(client: TestClient) -> None:
    for path in ("/", "/fragments/status"):
        text = client.get(path, headers={"host": '"><script>x</script>'}).text
        assert "<script>x" not in text


def test_pages_forbid_everything_that_is_not_their_own(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]

    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert client.get("/assets/nothing.css").status_code == 404
