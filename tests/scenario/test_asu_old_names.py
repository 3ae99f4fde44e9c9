"""The old file, verbs and entry point: `config.yml`, `python -m asu`, `asu:app` as WSGI and as ASGI."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.asgi import running
from tests.asu_world import ARCH, BOARD, STABLE, TARGET, Upstream, asu_world
from tests.loopback import serving

from asu.__main__ import cli
from asu.configuration import configuration_path, load_configuration
from asu.entry import Entry
from asu.filling import every_device, submit
from overhaul.builds.memory import MemoryQueue
from overhaul.builds.records import QueueLimits
from overhaul.dialects.asu.distributions import DistributionError

CONFIG = """\
updater_dir: updater/
updater_threads: 4
worker: [worker1/, worker2/]
active_distros: [openwrt]
distro_folder: distributions/
download_folder: download/
max_defaults_size: 1024
allow_http: true
upstream_url: {url}
"""


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    with serving(tmp_path) as server:
        server.files.update({path.removeprefix("/"): data for path, data in Upstream().files.items()})
        path = tmp_path / "config.yml"
        path.write_text(CONFIG.format(url=server.url.rstrip("/")))
        for name in ("openwrt", "lede"):
            (tmp_path / f"distributions/{name}").mkdir(parents=True)
            text = f"distro_alias: {name}\nlatest: {STABLE}\nversions: [{STABLE}]\n"
            (tmp_path / f"distributions/{name}/distro_config.yml").write_text(text)
        yield path


def verb(config: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(config), *words])


def wsgi(entry: Entry, method: str, path: str, body: bytes = b"") -> tuple[str, dict[str, str], bytes]:
    told: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        told.update(status=status, headers=dict(headers))

    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "", "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body), "wsgi.url_scheme": "http", "REMOTE_ADDR": "192.0.2.7",
        "HTTP_USER_AGENT": "auc",
    }  # fmt: skip
    answered = b"".join(entry(environ, start_response))
    return told["status"], told["headers"], answered


def test_the_old_verbs_and_the_entry_point_work_from_the_old_file(config: Path) -> None:
    made = verb(config, "initdb")
    assert (made.exit_code, "is ready" in made.stdout) == (0, True), made.output
    loaded = verb(config, "loaddb")
    assert (loaded.exit_code, "0 problems" in loaded.stdout) == (0, True), loaded.output

    entry = Entry(lambda: load_configuration(config))
    request = {"distro": "openwrt", "version": STABLE, "target": TARGET, "board": BOARD, "packages": ["vim"]}
    status, headers, body = wsgi(entry, "POST", "/api/build-request", json.dumps(request).encode())
    assert (status[:3], headers["x-imagebuilder-status"]) == ("202", "queue"), body
    assert wsgi(entry, "POST", "/api/build-request", b"x" * 300_000)[0][:3] == "413"
    distros = json.loads(wsgi(entry, "GET", "/api/distros")[2])
    assert [one["distro"] for one in distros] == ["openwrt"], "lede is not active"
    entry.close()

    with running(Entry(lambda: load_configuration(config))) as site:
        name = json.loads(body)["request_hash"]
        assert site.ask(f"/api/build-request/{name}").status == 202
        assert ARCH in site.ask("/json/v1/overview.json").body.decode()
        big = json.dumps({**request, "defaults": "x" * 1025}).encode()
        assert site.ask("/api/build-request", method="POST", body=big).status == 420

    emptied = verb(config, "resetdb", "--yes")
    assert emptied.exit_code == 0, emptied.output
    entry = Entry(lambda: load_configuration(config))
    assert wsgi(entry, "GET", f"/api/build-request/{name}")[0][:3] == "404"
    entry.close()


def test_series_of_images_are_queued_once_and_answer_devices(config: Path) -> None:
    assert verb(config, "build-all").exit_code == 3, "nothing is known yet"
    assert verb(config, "loaddb").exit_code == 0
    made = verb(config, "build-all")
    # Two devices of one target and the generic one of the other.
    assert (made.exit_code, made.stdout) == (0, "3 builds queued, 0 were there already, 0 refused.\n"), made.output
    again = verb(config, "build-all")
    assert (again.exit_code, again.stdout) == (0, "0 builds queued, 3 were there already, 0 refused.\n")

    lacking = verb(config, "build-worker")
    assert lacking.exit_code == 3
    assert "bubblewrap" in lacking.stderr, "this small upstream has none, and that is said"
    worker = verb(config, "build-worker", "--package", "vim", "--package", "tmux")
    assert worker.stdout.startswith("1 builds queued")
    entry = Entry(lambda: load_configuration(config))
    request = {"distro": "openwrt", "version": STABLE, "target": TARGET, "board": BOARD, "packages": []}
    status, headers, _body = wsgi(entry, "POST", "/api/build-request", json.dumps(request).encode())
    entry.close()
    assert (status[:3], headers["x-build-queue-position"]) == ("202", "0"), "the build is there already"


def test_a_series_waits_while_the_queue_is_full(tmp_path: Path) -> None:
    queue = MemoryQueue(limits=QueueLimits(waiting=1, waiting_of_client=1))
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        lease = queue.lease(worker="stand-in", builders=["openwrt"])
        assert lease is not None
        queue.cancel(lease.build.build_id)

    with asu_world(tmp_path, queue=queue) as world:
        catalogue = world.server.parts.catalogue.now()
        begun = [submit(request, catalogue, queue, wait=wait) for request in every_device(catalogue)]

    assert begun == [True] * 3
    assert len(waits) == 2


def test_the_help_of_a_verb_needs_no_configuration(tmp_path: Path) -> None:
    for name in cli.commands:
        assert verb(tmp_path / "none.yml", name, "--help").exit_code == 0


def test_an_upstream_that_tells_nothing_is_a_failure(config: Path) -> None:
    config.write_text(config.read_text().replace("upstream_url: http://127.0.0.1", "upstream_url: http://127.0.0.2"))
    assert verb(config, "loaddb").exit_code == 5


def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("max_defaults_size: many\n")
    with pytest.raises(DistributionError, match="max_defaults_size"):
        load_configuration(path)
    command = [sys.executable, "-m", "asu", "--config", str(path), "initdb"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def test_the_environment_names_the_file_before_the_usual_places_do() -> None:
    assert configuration_path({"ASU_CONFIG": "/somewhere/config.yml"}) == Path("/somewhere/config.yml")
