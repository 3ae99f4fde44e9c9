"""What a device may count on, whoever serves the published tree: our server, from a directory or any other
storage, and a real nginx with the configuration we ship.
"""

import http.client
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from email.parser import BytesParser
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from tests.asgi import Site, running
from tests.ports import reserved_port
from tests.published import PublishedRepository
from tests.tools import need
from tests.waiting import until_it_listens

from overhaul.dialects.atomupd.own_pool import link_store
from overhaul.release.record import Release, ReleaseId, decode_release
from overhaul.repository.local import LocalStorage
from overhaul.repository.memory import MemoryStorage
from overhaul.repository.opening import StorageAddress
from overhaul.server.app import create_app
from overhaul.server.caching import SERVED_ROOTS
from overhaul.server.database.engine import sqlite_url
from overhaul.server.pointer import Pointer
from overhaul.server.settings import ServerSettings
from overhaul.server.static import StaticTree
from overhaul.server.tree import StorageTree

POLL = "/metadata/timestamp.json"
SECRET = b"nobody outside may read this"
DIGEST = "0123456789abcdef" * 4
CHUNK = f"{DIGEST[:4]}/{DIGEST}.cacnk"
_IMAGE = "atomupd/alpha/images/alpha/desk/amd64/1.0/b1"
#: Files as the dialects' publishers lay them out, and what a server says about keeping them; None: nothing, to nobody.
_DIALECTS = {
    "ostree/alpha/config": "no-cache",
    "ostree/alpha/summary": "no-cache",
    "ostree/alpha/refs/heads/alpha/amd64/desk/stable": "no-cache",
    f"ostree/alpha/objects/{DIGEST[:2]}/{DIGEST[2:]}.filez": "immutable",
    f"ostree/alpha/objects/{DIGEST[:2]}/{DIGEST[2:]}.commitmeta": "no-cache",
    "ostree/alpha/deltas/aB/c_+D-e/superblock": "no-cache",
    "ostree/alpha/delta-indexes/aB/c_+D.index": "no-cache",
    "ostree/alpha/overhaul.trustedkeys.gpg": None,
    "ostree/alpha/.lock": None,
    "ostree/alpha/tmp/cache/x": None,
    "ostree/alpha/state/x": None,
    "swupd/alpha/desk/amd64/version/format4/latest": "no-cache",
    "swupd/alpha/desk/amd64/channels/beta/version/format4/latest": "no-cache",
    "swupd/alpha/desk/amd64/20/Manifest.MoM": "immutable",
    "swupd/alpha/desk/amd64/20/Manifest.MoM.sig": "no-cache",
    f"swupd/alpha/desk/amd64/20/files/{DIGEST}.tar": "immutable",
    "swupd/alpha/desk/amd64/20/pack-os-core-from-10.tar": "immutable",
    "swupd/alpha/desk/amd64/.building-30/Manifest.MoM": None,
    f"{_IMAGE}/image.raucb": "immutable",
    f"{_IMAGE}/image.manifest.json": "no-cache",
    "atomupd/alpha/meta/holo/alpha/amd64/desk/stable.json": "no-cache",
}
_NGINX_CONF = Path(__file__).parents[2] / "deploy/nginx/overhaul.conf"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedRepository:
    repository = PublishedRepository(tmp_path_factory.mktemp("published") / "repository")
    repository.publish("1.0", "b1", image_size=1_500_000)
    (repository.public / "content" / "way-out").symlink_to(repository.directory / "store" / "private")
    (repository.public / "content" / "leak.json").symlink_to("/etc/passwd")
    (repository.public / "metadata" / ".timestamp.json.1.tmp").write_bytes(SECRET)
    (repository.directory / "store" / "private" / "secret.json").write_bytes(SECRET)
    for path in (*_DIALECTS, f"castr/alpha/default.castr/{CHUNK}"):
        (repository.public / path).parent.mkdir(parents=True, exist_ok=True)
        (repository.public / path).write_bytes(f"bytes of {path}".encode())
    link_store(
        repository.public / "atomupd/alpha/images",
        ReleaseId(product="alpha", variant="desk", arch="amd64", version="1.0", build_id="b1"),
        repository.public / "castr/alpha/default.castr",
    )
    elsewhere = repository.public / "atomupd/alpha/images/alpha/desk/amd64/9.0/b9"
    elsewhere.mkdir(parents=True)
    (elsewhere / "image.castr").symlink_to(repository.directory / "store" / "private")
    (elsewhere / "image.raucb").symlink_to("/etc/passwd")
    return repository


@pytest.fixture(scope="module")
def release(published: PublishedRepository) -> Release:
    (record,) = (published.public / "targets/alpha/releases").rglob("*.json")
    return decode_release(record.read_bytes())


@contextmanager
def _our_server(published: PublishedRepository) -> Iterator[Site]:
    settings = ServerSettings(
        storage=StorageAddress(url=str(published.directory / "store")),
        database_url=sqlite_url(published.directory / "server" / "test.sqlite3"),
    )
    with running(create_app(settings)) as site:
        yield site


@contextmanager
def _our_server_on_a_bucket(published: PublishedRepository) -> Iterator[Site]:
    local, storage = LocalStorage(published.directory / "store"), MemoryStorage()
    for stored in local.list_objects():
        if not (local.root / stored.key).is_symlink():
            storage.put(stored.key, local.read(stored.key))
    tree = StorageTree(storage)
    static = StaticTree(tree, Pointer(tree, ask_every_s=0))
    with running(Starlette(routes=[Route(f"/{root}/{{path:path}}", static) for root in SERVED_ROOTS])) as site:
        yield site


@contextmanager
def _nginx_before_our_server(published: PublishedRepository) -> Iterator[Site]:
    program = need("nginx")
    with _our_server(published) as behind, reserved_port() as port, _nginx(program, published, behind, port) as site:
        yield site


@contextmanager
def _nginx(program: str, published: PublishedRepository, behind: Site, port: int) -> Iterator[Site]:
    work = Path(tempfile.mkdtemp(prefix="nginx-", dir=published.directory.parent))
    shipped = _NGINX_CONF.read_text()
    adapted = shipped
    for line, replacement in (
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("root /srv/overhaul/public;", f"root {published.public};"),
        ("server 127.0.0.1:8780;", f"server 127.0.0.1:{behind.port};"),
    ):
        assert adapted.count(line) == 1, f"the shipped configuration no longer has the line {line!r}"
        adapted = adapted.replace(line, replacement)
    temporary = "".join(
        f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (work / "site.conf").write_text(adapted)
    (work / "nginx.conf").write_text(
        f"daemon off; {'user root;' if os.geteuid() == 0 else ''} worker_processes 1; pid {work}/pid;"
        f"error_log {work}/error.log; events {{ }} http {{ access_log off; {temporary} include {work}/site.conf; }}"
    )
    with subprocess.Popen([program, "-p", str(work), "-c", str(work / "nginx.conf")], stderr=subprocess.PIPE) as server:
        try:
            until_it_listens(port, server)
            yield Site(port)
        finally:
            server.terminate()


_SERVERS: dict[str, Callable[[PublishedRepository], AbstractContextManager[Site]]] = {
    "ours": _our_server,
    "ours-bucket": _our_server_on_a_bucket,
    "nginx": _nginx_before_our_server,
}


@pytest.fixture(scope="module", params=list(_SERVERS))
def site(request: pytest.FixtureRequest, published: PublishedRepository) -> Iterator[Site]:
    with _SERVERS[request.param](published) as running_site:
        yield running_site


@pytest.fixture(scope="module", params=["ours", "nginx"])
def directory_site(request: pytest.FixtureRequest, published: PublishedRepository) -> Iterator[Site]:
    """Serve a directory, which is where dialects that other programs write to live."""
    with _SERVERS[request.param](published) as running_site:
        yield running_site


@pytest.fixture
def pack(release: Release) -> str:
    return "/" + release.image.packs[0].pack.path


def test_nginx_hands_the_rest_to_our_server_and_keeps_the_metrics_inside(published: PublishedRepository) -> None:
    with _nginx_before_our_server(published) as site:
        assert b"alpha" in site.ask("/api/v1/channels").body
        assert site.ask("/health/live").status == 200
        assert site.ask("/metrics").status == 403
        assert b'"outcome"' in site.ask("/api/v1/reports", method="POST", body=b"{}").body


def test_a_whole_file_comes_with_its_length_and_a_strong_tag(
    site: Site, published: PublishedRepository, pack: str
) -> None:
    answer = site.ask(pack)

    assert answer.status == 200
    assert answer.body == published.file(pack[1:])
    assert answer.header("content-length") == str(len(answer.body))
    assert re.fullmatch(r'"[^"]+"', answer.header("etag"))
    assert answer.header("accept-ranges") == "bytes"


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [("bytes=0-0", 0, 1), ("bytes=1000-300999", 1000, 301_000), ("bytes=1200000-", 1_200_000, None)],
)
def test_a_range_holds_exactly_the_bytes_asked_for(
    site: Site, published: PublishedRepository, pack: str, asked: str, begin: int, end: int | None
) -> None:
    whole = published.file(pack[1:])

    answer = site.ask(pack, range=asked)

    assert answer.status == 206
    assert answer.body == whole[begin:end]
    last = begin + len(answer.body) - 1
    assert answer.header("content-range") == f"bytes {begin}-{last}/{len(whole)}"


def test_the_last_bytes_can_be_asked_for(site: Site, published: PublishedRepository, pack: str) -> None:
    assert site.ask(pack, range="bytes=-100").body == published.file(pack[1:])[-100:]


def test_several_ranges_come_in_one_answer_in_the_order_asked_for(
    site: Site, published: PublishedRepository, pack: str
) -> None:
    whole = published.file(pack[1:])

    answer = site.ask(pack, range="bytes=10-19,500000-500099, 900000-900001")

    assert answer.status == 206
    assert int(answer.header("content-length")) == len(answer.body)
    message = BytesParser().parsebytes(
        b"content-type: " + answer.header("content-type").encode() + b"\n\n" + answer.body
    )
    assert message.get_content_type() == "multipart/byteranges"
    parts = re.findall(rb"content-range: bytes (\d+)-(\d+)/(\d+)\r\n", answer.body, re.IGNORECASE)
    assert [(int(first), int(last)) for first, last, _size in parts] == [
        (10, 19),
        (500_000, 500_099),
        (900_000, 900_001),
    ]
    assert {int(size) for _first, _last, size in parts} == {len(whole)}
    for first, last, _size in parts:
        assert b"\r\n\r\n" + whole[int(first) : int(last) + 1] + b"\r\n--" in answer.body


def test_a_range_behind_the_end_is_refused_and_the_size_told(
    site: Site, published: PublishedRepository, pack: str
) -> None:
    answer = site.ask(pack, range="bytes=99999999-")

    assert answer.status == 416
    assert answer.header("content-range") == f"bytes */{len(published.file(pack[1:]))}"


@pytest.mark.parametrize("nonsense", ["lines=1-2", "bytes=abc"])
def test_a_range_header_that_says_nothing_gets_no_partial_answer(site: Site, pack: str, nonsense: str) -> None:
    assert site.ask(pack, range=nonsense).status in {200, 416}


@pytest.mark.parametrize("which", ["poll", "pack"])
def test_a_known_tag_gets_no_body(site: Site, pack: str, which: str) -> None:
    path = POLL if which == "poll" else pack
    etag = site.ask(path).header("etag")

    answer = site.ask(path, if_none_match=etag)

    assert (answer.status, answer.body) == (304, b"")
    assert answer.header("etag") == etag
    assert site.ask(path, if_none_match='"another"').status == 200


def test_a_resumed_range_of_a_changed_file_gives_the_whole_file(
    site: Site, published: PublishedRepository, pack: str
) -> None:
    etag = site.ask(pack, method="HEAD").header("etag")

    assert site.ask(pack, range="bytes=5-9", if_range=etag).status == 206
    assert site.ask(pack, range="bytes=5-9", if_range='"another"').body == published.file(pack[1:])


def test_asking_for_the_head_tells_everything_but_the_body(site: Site, pack: str) -> None:
    full, head = site.ask(pack), site.ask(pack, method="HEAD")

    assert (head.status, head.body) == (200, b"")
    for name in ("etag", "content-length", "cache-control", "content-type", "accept-ranges"):
        assert head.header(name) == full.header(name)


def test_content_named_files_may_be_kept_for_ever_and_the_pointer_may_not(
    site: Site, published: PublishedRepository, pack: str
) -> None:
    (record,) = (published.public / "targets/alpha/releases").rglob("*.json")
    immutable = [pack, "/metadata/1.root.json", "/" + record.relative_to(published.public).as_posix()]

    assert all("immutable" in site.ask(path).header("cache-control") for path in immutable)
    assert site.ask(POLL).header("cache-control") == "no-cache"
    assert site.ask("/metadata/1.root.json").header("content-type") == "application/json"


@pytest.mark.parametrize(("path", "keeping"), _DIALECTS.items())
def test_files_of_dialects_are_kept_as_their_clients_may(directory_site: Site, path: str, keeping: str | None) -> None:
    answer = directory_site.ask(f"/{path}")

    if keeping is None:
        assert answer.status == 404
        assert b"bytes of" not in answer.body
    else:
        assert (answer.status, answer.body) == (200, f"bytes of {path}".encode())
        assert keeping in answer.header("cache-control")


def test_the_chunk_store_is_found_beside_the_bundle_and_nothing_else_through_a_link(directory_site: Site) -> None:
    beside = directory_site.ask(f"/{_IMAGE}/image.castr/{CHUNK}")

    assert beside.body == f"bytes of castr/alpha/default.castr/{CHUNK}".encode()
    assert "immutable" in beside.header("cache-control")
    for path in ("image.castr/secret.json", "image.raucb", f"image.castr/../image.castr/{CHUNK[:-1]}"):
        answer = directory_site.ask(f"/atomupd/alpha/images/alpha/desk/amd64/9.0/b9/{path}")
        assert answer.status in {403, 404}
        assert SECRET not in answer.body
        assert b"root:" not in answer.body
    assert directory_site.ask(f"/{_IMAGE}/image.castr/{CHUNK[:4]}").status in {403, 404}


@pytest.mark.parametrize("path", ["/metadata/99.root.json", "/content/packs/ab/" + "ab" * 32 + ".pack", "/content/"])
def test_what_is_not_there_yet_is_not_remembered_as_absent(site: Site, path: str) -> None:
    answer = site.ask(path)

    assert answer.status in {403, 404}
    assert answer.header("cache-control") == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "/content/../../private/secret.json",
        "/content/%2e%2e/%2e%2e/private/secret.json",
        "/content/..%2f..%2fprivate%2fsecret.json",
        "/content/way-out/secret.json",
        "/content/leak.json",
        "/private/secret.json",
        "/metadata/.timestamp.json.1.tmp",
        "/content//etc/passwd",
        "//private/secret.json",
        "/content/%00/x",
        "/content/..\\..\\private\\secret.json",
    ],
)
def test_no_spelling_of_a_path_leaves_the_public_tree(site: Site, path: str) -> None:
    answer = site.ask(path)

    assert 400 <= answer.status < 500
    assert SECRET not in answer.body
    assert b"root:" not in answer.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_written(site: Site, method: str) -> None:
    assert site.ask(POLL, method=method, body=b"x").status in {403, 405}


def test_one_connection_answers_many_requests(site: Site, pack: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=120)
    connection.connect()
    first_socket = connection.sock
    for begin in range(0, 300, 100):
        connection.request("GET", pack, headers={"Range": f"bytes={begin}-{begin + 99}"})
        response = connection.getresponse()
        assert (response.status, len(response.read())) == (206, 100)
    assert connection.sock is first_socket
    connection.close()
