"""`overhaul serve` with a table [asu]: one command is a whole server for attended sysupgrade.

Signer, worker and sandbox are real; the ImageBuilder and the server it comes from are stand-ins.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.asgi import Site
from tests.asu_world import BOARD, STABLE, TARGET, Upstream
from tests.imagebuilder import UPSTREAM, StandInUpstream
from tests.loopback import LoopbackServer, serving
from tests.published import PublishedRepository
from tests.tools import need
from tests.waiting import until

from overhaul.trust.usign import UsignSecretKey, generate_usign_key, verify_usign

pytestmark = pytest.mark.xdist_group("serve-asu")

REQUEST = {"distro": "openwrt", "version": STABLE, "target": TARGET, "profile": BOARD, "packages": ["vim"]}


@dataclass
class Place:
    """A repository, how it builds images, and where ImageBuilders come from."""

    repository: PublishedRepository
    upstream: LoopbackServer
    key: UsignSecretKey

    @property
    def key_file(self) -> Path:
        return self.repository.directory / "builds.key"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    for program in ("bwrap", "make", "setpriv"):
        need(program)
    # A Unix socket's path is short, pytest's are not always.
    directory = tmp_path_factory.mktemp("asu")
    repository = PublishedRepository(directory / "r")
    repository.publish("1.0", "b1")
    imagebuilders = StandInUpstream()
    imagebuilders.put(STABLE)
    with serving(directory) as server:
        server.files.update({path.removeprefix("/"): data for path, data in Upstream().files.items()})
        for url, data in imagebuilders.files.items():
            server.files[url.removeprefix(UPSTREAM).removeprefix("/")] = data
        place = Place(repository, server, generate_usign_key())
        place.key_file.write_text(place.key.text())
        place.key_file.chmod(0o600)
        (repository.directory / "upstream.pub").write_text(imagebuilders.key.public.text())
        url = server.url.rstrip("/")
        (repository.directory / "builds.toml").write_text(
            f'[openwrt]\nenabled = true\nupstream_url = "{url}"\nallow_http = true\n'
            'usign_keys = ["upstream.pub"]\nnetwork = false\n[signer]\nkey = "builds.key"\n'
        )
        with (repository.directory / "overhaul.toml").open("a") as settings:
            settings.write(f'\n[asu]\nenabled = true\nallow_http = true\nupstream_url = "{url}"\n')
        yield place


def _command(place: Place, *options: str) -> list[str]:
    return [sys.executable, "-m", "overhaul", "serve", "--repository", str(place.repository.directory), *options]


@contextmanager
def _serve(place: Place, *options: str) -> Iterator[tuple[subprocess.Popen[str], Site]]:
    log = place.repository.directory / "serve.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            _command(place, "--port", "0", *options), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "Serving" in line, log.read_text()
            yield process, Site(int(line.strip().rstrip("/").rpartition(":")[2]))
        finally:
            if process.poll() is None:
                process.terminate()


def _built(site: Site, request: dict[str, Any]) -> dict[str, Any]:
    """Ask for an image as owut does, as soon as upstream is known, and wait until it is there."""
    until(lambda: site.ask("/json/v1/overview.json").body, lambda body: STABLE.encode() in body)
    body = json.dumps(request).encode()
    asked = until(
        lambda: site.ask("/api/v1/build", method="POST", body=body, content_type="application/json"),
        lambda answer: answer.status in {200, 202},
    )
    name = json.loads(asked.body)["request_hash"]
    done = until(lambda: site.ask(f"/api/v1/build/{name}"), lambda answer: answer.status != 202)
    document: dict[str, Any] = json.loads(done.body)
    assert done.status == 200, document
    return document


def _companions(process_id: int) -> dict[str, int]:
    """Return the signer and the worker that a server started, by verb."""
    found = {}
    for path in Path(f"/proc/{process_id}/task").glob("*/children"):
        children: list[str] = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            children = path.read_text().split()
        for child in children:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
                if "builds" in words:
                    found[words[words.index("builds") + 1]] = int(child)
    return found


def _is_gone(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _holders(lock: Path) -> list[int]:
    """Return the processes that hold a lock."""
    number = f":{lock.stat().st_ino}" if lock.exists() else None
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(words[4]) for words in locks if number is not None and words[5].endswith(number) and words[1] != "->"]


def test_one_command_builds_signs_and_serves_what_a_device_asks_for(place: Place) -> None:
    with _serve(place) as (process, site):
        document = _built(site, REQUEST)
        (image,) = [one for one in document["images"] if one["type"] == "sysupgrade" and one["filesystem"] == "ext4"]
        sums = site.ask(f"/store/{document['bin_dir']}/sha256sums").body
        signature = site.ask(f"/store/{document['bin_dir']}/sha256sums.sig").body.decode()
        assert verify_usign(sums, signature, (place.key.public,), name="sha256sums") == place.key.public
        assert f"{image['sha256']} *{image['name']}" in sums.decode()
        assert b"vim" in site.ask(f"/store/{document['bin_dir']}/{image['name']}").body

        # What is ours beside it stays ours, although some of its paths begin alike.
        assert b"alpha" in site.ask("/api/v1/releases").body
        assert b"alpha" in site.ask("/api/v1/channels").body
        assert site.ask("/api/v1/openapi.json").status == 200
        assert site.ask("/api/v1/nothing").status == 404
        assert site.ask("/metadata/timestamp.json").status == 200
        page = site.ask("/").body.decode()
        assert 'href="/firmware"' in page
        assert 'href="/builds"' in page
        assert site.ask("/firmware").status == 200
        assert site.ask("/builds").status == 200
        assert site.ask("/stats/").status in {301, 302, 307}
        twice = site.ask("//api/v1/latest")
        assert (twice.status, twice.header("location")) == (301, "/api/v1/latest")

        metrics = site.ask("/metrics").body.decode()
        assert f'builds_total{{profile="{BOARD}",target="{TARGET}",version="{STABLE}"}} 1.0' in metrics
        assert re.search(r"^cache_misses 1\.0$", metrics, re.MULTILINE)
        assert 'route="asu-build"' in metrics
        assert 'route="asu-catalogue"' in metrics

        companions = _companions(process.pid)
        assert set(companions) == {"signer", "worker"}
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert all(_is_gone(one) for one in companions.values())


def test_a_worker_that_died_is_started_again_and_all_end_with_a_killed_server(place: Place) -> None:
    with _serve(place) as (process, _site):
        before = until(lambda: _companions(process.pid).get("worker", 0))
        os.kill(before, signal.SIGKILL)
        until(lambda: _companions(process.pid).get("worker", before), lambda now: now != before)
        companions = _companions(process.pid)
        process.kill()
        process.wait()
        until(companions.values, lambda all_: all(_is_gone(one) for one in all_))


def test_of_several_processes_one_follows_upstream_and_all_know_what_it_found(place: Place) -> None:
    place.upstream.requests.clear()
    with _serve(place, "--workers", "2") as (process, site):
        answers = until(
            lambda: [site.ask("/json/v1/overview.json").body for _ in range(20)],
            lambda bodies: all(STABLE.encode() in body for body in bodies),
        )
        assert len(set(answers)) == 1
        (holder,) = until(lambda: _holders(place.repository.directory / "builds/catalogue/updater.lock"), bool)
        assert holder != process.pid
        asked = until(lambda: [seen.path for seen in place.upstream.requests if "versions.json" in seen.path], bool)
        assert len(asked) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_without_a_key_to_sign_with_it_does_not_start_and_says_why(place: Place) -> None:
    place.key_file.chmod(0o644)
    try:
        ended = subprocess.run(_command(place, "--port", "0"), capture_output=True, text=True, check=False)
    finally:
        place.key_file.chmod(0o600)

    assert ended.returncode == 7
    assert "others can read this secret key" in ended.stderr
    assert "build_workers = 0" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_builds_that_cannot_be_set_up_are_one_sentence(place: Place, workers: str) -> None:
    (place.repository.directory / "overhaul.toml").rename(place.repository.directory / "kept.toml")
    text = (
        (place.repository.directory / "kept.toml").read_text().replace('builds = "builds.toml"', 'builds = "no.toml"')
    )
    try:
        (place.repository.directory / "overhaul.toml").write_text(text)
        command = _command(place, "--port", "0", "--workers", workers)
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        (place.repository.directory / "kept.toml").replace(place.repository.directory / "overhaul.toml")

    assert ended.returncode == 7
    assert ended.stderr.startswith("Error: ")
    assert "no.toml" in ended.stderr
    assert "Traceback" not in ended.stderr
