"""The query protocol on a real socket: every row of its table, the watched pool, and what devices may tell."""

import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote_from_bytes, urlencode

import pytest
import uvicorn
from tests.asgi import Answer, Site, running
from tests.atomupd_pools import put_image, put_thousand, write_configuration
from tests.certificates import write_certificate
from tests.waiting import PATIENCE_S, until

from overhaul.dialects.atomupd import pool as pools
from overhaul.dialects.atomupd import server_cli
from overhaul.dialects.atomupd.candidates import decode_update
from overhaul.dialects.atomupd.catalogue import assemble
from overhaul.dialects.atomupd.serve import QueryServer, ServedPool, network_of, query_app_of
from overhaul.dialects.atomupd.server_configuration import Support

_DEVICE = {
    "product": "steamos",
    "release": "holo",
    "variant": "steamdeck",
    "arch": "amd64",
    "version": "3.7.1",
    "buildid": "20240101.0",
    "branch": "stable",
}


class _Pool:
    def __init__(self, directory: Path) -> None:
        self.path, self.file = directory / "pool", directory / "s.conf"
        self.path.mkdir()
        self.configure()

    def configure(self, *sections: str, **images: str) -> None:
        write_configuration(self.file, self.path, *sections, **images)

    def put(self, version: str, build_id: str, **fields: object) -> Path:
        return self.path / put_image(self.path, version, build_id, **fields)  # type: ignore[arg-type]

    def server(self) -> QueryServer:
        return query_app_of(self.file)


@pytest.fixture
def pool(tmp_path: Path) -> _Pool:
    pool = _Pool(tmp_path)
    pool.put("3.7.1", "20240101")
    pool.put("3.7.2", "20240102")
    return pool


def _ask(site: Site, path: str = "/", **fields: str) -> Answer:
    return site.ask(f"{path}?{urlencode({**_DEVICE, **fields})}")


def _builds(answer: Answer) -> list[str]:
    update = decode_update(answer.body)
    return [str(candidate.image.build_id) for candidate in update.minor.candidates] if update.minor else []


@pytest.mark.parametrize("path", ["/", "/updates", "/updates/"])
def test_an_update_is_one_line_with_its_keys_in_order(pool: _Pool, path: str) -> None:
    with running(pool.server()) as site:
        answer = _ask(site, path)

    assert answer.status == 200
    assert answer.body.startswith(
        b'{"minor": {"release": "holo", "candidates": [{"image": {"product": "steamos", "release": "holo", '
        b'"variant": "steamdeck", "branch": "stable", "default_update_branch": "stable", "arch": "amd64", '
        b'"version": "3.7.2", "buildid": "20240102.0", "estimated_size": 0}, "update_path": "steamos/'
    )


@pytest.mark.parametrize(
    ("strict", "more", "body"),
    [
        ("no", {}, b""),
        ("no", {"estimated_size": "0"}, b"{}"),
        ("yes", {}, b'""'),
        ("yes", {"estimated_size": "0"}, b'""'),
    ],
)
@pytest.mark.parametrize(
    "device", [{"buildid": "20240102", "version": "3.7.2"}, {"product": "other"}, {"arch": "mips"}]
)
def test_no_update_looks_as_each_client_needs_it(
    pool: _Pool, strict: str, more: dict[str, str], body: bytes, device: dict[str, str]
) -> None:
    pool.configure("[Overhaul]", f"StrictCompatibility = {strict}")
    with running(pool.server()) as site:
        answer = _ask(site, **device, **more)

    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "valentine"},
        {"version": ""},
        {"buildid": "20189999"},
        {"requires_checkpoint": "one"},
        {"estimated_size": "1.5"},
        {"checkpoint": "True"},
        {"branch": "", "variant": "vanilla"},
        {"version": "1" * 9000},
    ],
)
def test_a_question_that_makes_no_sense_is_malformed(pool: _Pool, change: dict[str, str]) -> None:
    with running(pool.server()) as site:
        answer = _ask(site, **change)

    assert (answer.status, answer.body) == (400, b"Malformed request")


@pytest.mark.parametrize("missing", ["product", "release", "variant", "arch", "version", "buildid"])
def test_a_missing_parameter_is_malformed(pool: _Pool, missing: str) -> None:
    fields = {name: value for name, value in _DEVICE.items() if name != missing}
    with running(pool.server()) as site:
        assert site.ask(f"/?{urlencode(fields)}").status == 400


def test_other_paths_and_methods_are_refused(pool: _Pool) -> None:
    with running(pool.server()) as site:
        question = f"/?{urlencode(_DEVICE)}"

        assert site.ask("/other").status == 404
        assert site.ask("/list").status == 404
        assert (site.ask(question, method="POST").status, site.ask(question, method="DELETE").status) == (405, 405)
        assert (site.ask(question, method="HEAD").status, site.ask(question, method="HEAD").body) == (200, b"")
        assert site.ask(question, method="OPTIONS").header("allow") == "GET, HEAD, OPTIONS"


def test_unknown_parameters_do_not_matter_and_the_first_of_two_counts(pool: _Pool) -> None:
    with running(pool.server()) as site:
        answer = site.ask(f"/?{urlencode(_DEVICE)}&version=bad&colour=blue&&=&skip=False")

    assert _builds(answer) == ["20240102.0"]


def test_the_default_branch_is_asked_for(pool: _Pool) -> None:
    pool.put("3.8", "20240201", branch="beta")
    with running(pool.server()) as site:
        assert _builds(_ask(site, default_update_branch="beta")) == ["20240201.0"]


def test_a_device_on_an_image_that_was_withdrawn_later_is_led_away(pool: _Pool) -> None:
    pool.put("3.9", "20240301", skip=True)
    with running(pool.server()) as site:
        assert _builds(_ask(site, version="3.9", buildid="20240301")) == ["20240102.0"]


def test_developers_can_list_the_pool_where_it_is_allowed(pool: _Pool) -> None:
    pool.configure("[Overhaul]", "List = yes")
    (pool.path / "bad.manifest.json").write_text("{")
    with running(pool.server()) as site:
        everything = json.loads(site.ask("/list").body)
        one = json.loads(site.ask("/updates/list?version=3.7.2").body)

    assert [image["buildid"] for image in everything["images"]] == ["20240101.0", "20240102.0"]
    assert [image["buildid"] for image in one["images"]] == ["20240102.0"]
    assert everything["problems"][0].startswith("bad.manifest.json: ")


@pytest.mark.parametrize(
    ("rule", "facts", "offered"),
    [
        ("NotHardware = board=Jupiter", {"hardware.board": "Jupiter"}, False),
        ("NotHardware = board=Jupiter", {"hardware.board": "Galileo"}, True),
        ("NotHardware = board=Jupiter", {}, False),
        ("NotHardware = board=Jupiter\nUnknownHardware = offer", {}, True),
        ("NotHardware = board=Jupiter\nUnknownHardware = offer", {"hardware.board": "Jupiter"}, False),
        ("OnlyHardware = board=Gal*; board=Ju*", {"hardware.board": "Galileo"}, True),
        ("OnlyHardware = board=Gal*; board=Ju*", {"hardware.board": "other"}, False),
        ("OnlyHardware = board=Gal*", {}, False),
        ("OnlyHardware = board=Gal*\nUnknownHardware = offer", {}, True),
        ("OnlyHardware = board=Gal*\nUnknownHardware = offer", {"hardware.board": "other"}, False),
        ("AttendedOnly = yes", {}, False),
        ("AttendedOnly = yes", {"attended": "False"}, False),
        ("AttendedOnly = yes", {"attended": "True"}, True),
        ("Percent = 0", {"rollout": "5"}, False),
        ("Percent = 50", {}, False),
        ("Percent = 100", {}, True),
        ("Branches = beta\nPercent = 0", {}, True),
    ],
)
def test_rules_decide_who_is_offered_an_image(pool: _Pool, rule: str, facts: dict[str, str], *, offered: bool) -> None:
    pool.put("3.7.3", "20240103")
    pool.configure("[Overhaul.Rule.one]", "Images = 3.7.3/*", rule)
    with running(pool.server()) as site:
        builds = _builds(_ask(site, **facts))

    # Who may not have it is offered what there was before.
    assert builds == (["20240103.0"] if offered else ["20240102.0"])


def test_a_partial_rollout_reaches_its_part_of_the_places_and_only_grows(pool: _Pool) -> None:
    pool.put("3.7.3", "20240103")
    reached: dict[int, set[int]] = {}
    for percent in (25, 60):
        pool.configure("[Overhaul.Rule.slow]", "Images = 20240103.0", f"Percent = {percent}")
        server = pool.server()
        with running(server) as site:
            reached[percent] = {
                place for place in range(100) if _builds(_ask(site, rollout=str(place))) == ["20240103.0"]
            }

    assert reached[25] < reached[60]
    assert 10 <= len(reached[25]) <= 40
    assert 45 <= len(reached[60]) <= 75


def test_clients_without_a_place_are_judged_by_their_network_only_where_that_is_wanted() -> None:
    assert network_of(("192.0.2.7", 1)) == network_of(("192.0.2.200", 2)) != network_of(("192.0.3.7", 1))
    assert network_of(("2001:db8::1", 1)) == network_of(("2001:db8:0:1::1", 2))
    assert network_of(None) == network_of(("testclient", 1)) == ""


def test_an_image_is_offered_when_it_comes_and_no_more_when_it_goes(pool: _Pool) -> None:
    with running(pool.server()) as site:
        before = _builds(_ask(site))
        pool.put("3.7.9", "20240109")
        until(lambda: _builds(_ask(site)) == ["20240109.0"])
        (pool.path / "steamos/holo/3.7.9/amd64").rename(pool.path / ".hidden")
        until(lambda: _builds(_ask(site)) == ["20240102.0"])

    assert before == ["20240102.0"]


def test_a_manifest_written_over_in_place_is_read_again(pool: _Pool) -> None:
    manifest = pool.put("3.7.9", "20240109").with_suffix(".manifest.json")
    text = manifest.read_text()
    manifest.write_text(text[:20])
    with running(pool.server()) as site:
        broken = _builds(_ask(site))
        manifest.write_text(text)

        assert broken == ["20240102.0"]
        until(lambda: _builds(_ask(site)) == ["20240109.0"])


@pytest.mark.parametrize("unsettled_ns", [10**12, -(10**10)], ids=["just changed", "unchanged for long"])
def test_a_pool_that_goes_away_is_served_on_and_found_again(
    pool: _Pool, monkeypatch: pytest.MonkeyPatch, unsettled_ns: int
) -> None:
    monkeypatch.setattr(pools, "_UNSETTLED_NS", unsettled_ns)
    elsewhere = pool.path.with_name("elsewhere")
    server = pool.server()
    with running(server) as site:
        pool.path.rename(elsewhere)
        server.reload()
        without = _builds(_ask(site))
        elsewhere.rename(pool.path)
        pool.put("3.7.9", "20240109")

        assert without == ["20240102.0"]
        until(lambda: _builds(_ask(site)) == ["20240109.0"])


def test_chunk_stores_are_never_entered(pool: _Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pool.put("3.7.9", "20240109").with_suffix(".castr")
    (store / "0000").mkdir()
    (store / "0000" / "evil.manifest.json").write_text("{")
    entered: list[str] = []
    real = os.scandir

    def recording(path: str) -> object:
        entered.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", recording)
    server = pool.server()
    server.start()
    server.stop()

    assert entered
    assert not [path for path in entered if ".castr" in path]
    assert server.catalogue is not None
    assert not server.catalogue.problems


def test_a_pool_that_changes_under_the_walk_is_no_fault(pool: _Pool) -> None:
    ended = threading.Event()

    def stir() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            bundle = pool.put(f"4.0.{number % 7}", f"202402{1 + number % 28:02d}")
            if number % 3 == 0:
                shutil.rmtree(bundle.parent.parent, ignore_errors=True)

    server = pool.server()
    stirring = threading.Thread(target=stir)
    stirring.start()
    try:
        with running(server) as site:
            for _walk in range(40):
                server.reload()
                assert _ask(site).status == 200
    finally:
        ended.set()
        stirring.join()


class _LoadedSlowly:
    """A pool that is loaded again until somebody looks into it, or for much longer than the watcher pauses."""

    def __init__(self) -> None:
        self.looked = threading.Event()
        self.is_loading = False
        self.was_looked_into = False

    def has_changed(self) -> bool:
        self.was_looked_into = self.was_looked_into or self.is_loading
        self.looked.set()
        return False

    def load(self) -> ServedPool:
        self.is_loading = True
        if self.looked.is_set():
            self.looked.clear()
            self.looked.wait(0.3)
        self.is_loading = False
        return ServedPool(catalogue=assemble([], Support(products=(), releases=(), variants=(), archs=())))


def test_nobody_looks_into_a_pool_that_is_being_loaded() -> None:
    source = _LoadedSlowly()
    server = QueryServer(source, look_every_s=0.001)
    server.start()
    source.looked.wait()
    server.reload()
    server.stop()

    assert not source.was_looked_into


def _spoilt(data: bytes, source: random.Random) -> bytes:
    """Return `data` with some bytes changed, doubled or gone."""
    spoilt = bytearray(data)
    for _change in range(source.randint(1, 4)):
        place = source.randrange(len(spoilt))
        end = min(place + source.choice([1, 1, 4, 30]), len(spoilt))
        spoilt[place:end] = source.choice([b"", source.randbytes(2), bytes(spoilt[place:end]) * 2])
        if not spoilt:
            return b""
    return bytes(spoilt)


def test_no_question_whatever_is_answered_with_a_fault(pool: _Pool) -> None:
    good = urlencode({**_DEVICE, "hardware.board": "Jupiter", "attended": "True", "rollout": "7"}).encode()
    pool.configure("[Overhaul.Rule.one]", "Images = *", "NotHardware = board=x", "[Overhaul]", "List = yes")
    source = random.Random(3)
    with running(pool.server()) as site:
        for data in [_spoilt(good, source) for _ in range(300)] + [source.randbytes(60) for _ in range(100)]:
            for path in ("/", "/list"):
                answer = site.ask(f"{path}?{quote_from_bytes(data, safe='=&%+.')}")
                assert answer.status in (200, 400), data


def test_no_manifest_whatever_takes_the_good_ones_down(pool: _Pool) -> None:
    good = pool.put("3.7.9", "20240109").with_suffix(".manifest.json").read_bytes()
    source = random.Random(4)
    for number in range(200):
        (pool.path / f"bad{number}.manifest.json").write_bytes(_spoilt(good, source))
    (pool.path / "pipe.manifest.json").mkdir()
    os.mkfifo(pool.path / "fifo.manifest.json")
    (pool.path / "loop.manifest.json").symlink_to("loop.manifest.json")
    server = pool.server()
    with running(server) as site:
        assert _builds(_ask(site)) == ["20240109.0"]


def test_the_program_serves_prints_reloads_and_stops(pool: _Pool) -> None:
    put_thousand(pool.path, count=30, branches=("stable",))
    program = [sys.executable, "-m", "overhaul.dialects.atomupd.server_cli", "-d", "-c", str(pool.file)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            printed: list[str] = []
            for line in process.stdout:
                printed.append(line)
                if line.startswith("Listening"):
                    break
            site = Site(int(printed[-1].split()[-1]))
            until(lambda: _answers(site))
            process.send_signal(signal.SIGUSR2)
            process.send_signal(signal.SIGUSR1)
            again = next(line for line in process.stdout if "images in all" in line)
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            assert process.stderr is not None
            said = process.stderr.read()

    assert "32 images in all, 0 left out\n" in printed
    assert again == "32 images in all, 0 left out\n"
    assert process.returncode == 0
    assert "Traceback" not in said


def _answers(site: Site) -> bool:
    try:
        return _ask(site).status == 200
    except OSError:
        return False


def test_the_program_ends_with_1_when_it_cannot_serve(pool: _Pool, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "overhaul.dialects.atomupd.server_cli", "-c"]
    absent = subprocess.run([*program, str(tmp_path / "no.conf")], capture_output=True, text=True, check=False)
    pool.configure(PoolDir=str(tmp_path / "none"))
    without = subprocess.run([*program, str(pool.file)], capture_output=True, text=True, check=False)

    assert (absent.returncode, without.returncode) == (1, 1)
    assert "no.conf cannot be used" in absent.stderr
    assert "PoolDir" in without.stderr


@pytest.mark.parametrize(
    ("headers", "section", "status"),
    [
        ({}, "", 200),
        ({"X_Forwarded_For": "192.0.2.7", "X_Forwarded_Proto": "https"}, "", 200),
        ({"X_Forwarded_For": "192.0.2.7", "X_Forwarded_Proto": "http"}, "", 403),
        ({"X_Forwarded_For": "192.0.2.7"}, "", 403),
        ({"X_Forwarded_For": "2001:db8::7", "X_Forwarded_Proto": "http"}, "AllowHttp = yes", 200),
    ],
)
def test_what_a_proxy_got_over_plain_http_is_refused_unless_allowed(
    pool: _Pool, headers: dict[str, str], section: str, status: int
) -> None:
    pool.configure("[Overhaul]", section)
    with running(pool.server()) as site:
        assert site.ask(f"/?{urlencode(_DEVICE)}", method="GET", body=None, **headers).status == status


def test_the_program_answers_other_machines_only_over_https_or_when_told_to(pool: _Pool, tmp_path: Path) -> None:
    text = pool.file.read_text().replace("Host = 127.0.0.1", "Host = 0.0.0.0")
    pool.file.write_text(text)
    program = [sys.executable, "-m", "overhaul.dialects.atomupd.server_cli", "-c", str(pool.file)]
    refused = subprocess.run(program, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert refused.returncode == 1
    assert "AllowHttp = yes" in refused.stderr

    pool.file.write_text(f"{text}\n[Overhaul]\nAllowHttp = yes\n")
    with _program(program) as port:
        assert Site(port).ask(f"/?{urlencode(_DEVICE)}").status == 200

    certificate = write_certificate(tmp_path / "server.pem")
    files = f"Certificate = {certificate}\nCertificateKey = {certificate}\n"
    pool.file.write_text(f"{text}\n[Overhaul]\n{files}")
    with _program(program) as port:
        context = ssl.create_default_context(cafile=certificate)
        # Not by urllib, which would ask a proxy of the environment.
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE_S)
        with closing(connection):
            connection.request("GET", f"/?{urlencode(_DEVICE)}")
            assert b'"buildid": "20240102.0"' in connection.getresponse().read()


def test_whoever_is_told_that_it_listens_may_send_signals_at_once(
    pool: _Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    async def served(_server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        for listening in sockets:
            listening.close()

    monkeypatch.setattr(server_cli, "_handle_signals", lambda *_parts: told.append(capsys.readouterr().out))
    monkeypatch.setattr(uvicorn.Server, "serve", served)

    assert server_cli.main(["-c", str(pool.file)]) == 0
    assert ["Listening" in text for text in (*told, capsys.readouterr().out)] == [False, True]


@contextmanager
def _program(arguments: list[str]) -> Iterator[int]:
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(int(line.split()[-1]) for line in process.stdout if line.startswith("Listening"))
        finally:
            process.terminate()
