"""Networks as they are: in each the device updates, or says in one sentence what is wrong and what to do.

A real device updates from a real server through a network with a personality. Whatever happens, the device goes on
running what it runs, nothing half-written is bootable, and as soon as the network behaves the same device updates.
One second of a slow network takes a tenth of one here; the limits that it meets are scaled alike. Where nothing is
slow, the limits are those that devices have.
"""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.asgi import running
from tests.certificates import write_certificate
from tests.fleet import RealDevice, RealRepository, small_image
from tests.hostile_network import Answer, Exchange, Personality, cutting, honest, network
from tests.local_network import within
from tests.tools import need

from overhaul.agent.checking import check
from overhaul.agent.outcomes import Checked, Ready, Updated
from overhaul.agent.updating import update
from overhaul.agent.wiring import open_device, utc_now
from overhaul.errors import NetworkError, OverhaulError
from overhaul.install.settings import load_settings
from overhaul.progress import Silence
from overhaul.server.app import create_app
from overhaul.server.settings import ServerSettings
from overhaul.transfer.fetcher import (
    InsecureRedirectError,
    InterruptedTransferError,
    LoginPageError,
    OversizeError,
    ProxyRefusedError,
    RecodedAnswerError,
    RefusedStatusError,
    UnreachableError,
    UntrustedServerError,
)
from overhaul.transfer.fetching import WrongDigestError
from overhaul.transfer.settings import Engine, FetchSettings
from overhaul.trust.refusals import MalformedMetadataError, RollbackError, StaleRepositoryError

_SPEEDUP = 10
_IMAGE_SIZE = 1 << 18


@dataclass(frozen=True)
class Scene:
    """A server with two releases, and a device in a factory state that knows of the first."""

    port: int
    factory: RealDevice
    new: bytes
    #: The timestamp before the second release was published.
    old_timestamp: Answer


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("hostile")
    repository = RealRepository(directory / "repository")
    images = [small_image(directory / f"{version}.img", version, size=_IMAGE_SIZE) for version in ("1.0", "1.1")]
    repository.publish(images[0], "1.0")
    with running(create_app(ServerSettings.of_repository(repository.directory))) as site:
        factory = RealDevice.make(
            directory / "factory",
            url=site.url,
            root=repository.root,
            image=images[0],
            version="1.0",
            slot_size=_IMAGE_SIZE,
        )
        check(factory.device)
        told = site.ask("/metadata/timestamp.json")
        repository.publish(images[1], "1.1")
        old_timestamp = Answer(200, {"etag": told.header("etag")}, told.body)
        yield Scene(site.port, factory, images[1].read_bytes(), old_timestamp)


@dataclass
class Traveller:
    """A copy of the factory's device, on the way through a network."""

    scene: Scene
    device: RealDevice
    engine: Engine
    waits: list[float] = field(default_factory=list)

    def update(
        self,
        url: str,
        *,
        proxy: str = "",
        ca_file: Path | None = None,
        clock: Callable[[], datetime] = utc_now,
        is_slow: bool = False,
    ) -> Updated | Ready | Checked:
        """Update from `url`; with the scaled limits when the network is slow."""
        text = re.sub(r"(?m)^urls = .*", f'urls = ["{url}"]', self.device.configuration.read_text())
        text = re.sub(r"(?m)^(# )?proxy = .*", f'proxy = "{proxy}"', text)
        text = re.sub(r"(?m)^(# )?ca_file = .*", f'ca_file = "{ca_file or ""}"', text)
        self.device.configuration.write_text(text)
        fetching = FetchSettings(engine=self.engine)
        if is_slow:
            fetching = replace(
                fetching,
                connect_timeout_s=30 / _SPEEDUP,
                min_speed_window_s=10 / _SPEEDUP,
                min_bytes_per_s=512 * _SPEEDUP,
            )
        settings = load_settings(self.device.configuration)
        device = open_device(settings, clock=clock, sleep=self.waits.append, fetching=fetching)
        return update(device, progress=Silence())

    def arrives(self) -> None:
        """Check that the new release waits for its restart, whole."""
        assert self.device.boot.primary() == "B"
        assert self.device.slot("B").read_bytes() == self.scene.new

    def stands(self) -> None:
        """Check that the old release runs and goes on running, and that a better network makes everything good."""
        assert (self.device.boot.booted(), self.device.boot.primary()) == ("A", "A")
        assert not list(self.device.directory.rglob("*.part"))
        assert isinstance(self.update(f"http://127.0.0.1:{self.scene.port}"), Updated)
        self.arrives()


@pytest.fixture
def traveller(scene: Scene, tmp_path: Path, request: pytest.FixtureRequest) -> Traveller:
    return Traveller(scene, scene.factory.copy(tmp_path / "device"), getattr(request, "param", Engine.CURL))


_BOTH_ENGINES = pytest.mark.parametrize("traveller", [Engine.CURL, Engine.PLAIN], indirect=True)


# Networks in which the device gets through.


def _strip_ranges(exchange: Exchange) -> None:
    exchange.send(exchange.origin(without=frozenset({"range", "if-range"})))


def _leave_out_the_length(exchange: Exchange) -> None:
    answer = exchange.origin()
    exchange.send_head(answer, connection="close")
    exchange.raw(answer.body)
    exchange.keeps_open = False


def _leave_out_the_length_and_cut(exchange: Exchange) -> None:
    answer = exchange.origin()
    if not exchange.is_content:
        exchange.send(answer)
        return
    exchange.send_head(answer, connection="close")
    exchange.raw(answer.body[: max(2000, len(answer.body) // 2)])
    exchange.keeps_open = False


def _send_chunks(exchange: Exchange) -> None:
    answer = exchange.origin()
    exchange.send_head(answer, transfer_encoding="chunked")
    for begin in range(0, len(answer.body), 700):
        piece = answer.body[begin : begin + 700]
        exchange.raw(b"%x\r\n%b\r\n" % (len(piece), piece))
    exchange.raw(b"0\r\n\r\n")


def _trickle(exchange: Exchange) -> None:
    """Send two kilobytes in a second of this network."""
    answer = exchange.origin()
    exchange.send_head(answer, content_length=str(len(answer.body)))
    began = time.monotonic()
    for number, begin in enumerate(range(0, len(answer.body), 200), start=1):
        exchange.raw(answer.body[begin : begin + 200])
        # By the clock, so that a busy machine makes it no slower on the whole.
        if exchange.closing.wait(max(0.0, began + number * 0.1 / _SPEEDUP - time.monotonic())):
            return


def _reset(exchange: Exchange) -> None:
    answer = exchange.origin()
    if len(answer.body) <= 5000:
        exchange.send(answer)
        return
    exchange.send_head(answer, content_length=str(len(answer.body)))
    exchange.raw(answer.body[:5000])
    # A reset throws away what the receiver has not read; let it read.
    exchange.closing.wait(0.02)
    exchange.reset()


def _announce_too_much(exchange: Exchange) -> None:
    answer = exchange.origin()
    is_part = answer.status == 206
    exchange.send(answer, announced=len(answer.body) + 10 if is_part or not exchange.is_content else None)


def _announce_too_little_content(exchange: Exchange) -> None:
    answer = exchange.origin()
    short = exchange.is_content and len(answer.body) > 5000
    exchange.send(answer, announced=len(answer.body) // 2 if short else None)


def _multipart(exchange: Exchange, *, end: int | None = None) -> None:
    answer = exchange.origin()
    if answer.status != 206:
        exchange.send(answer)
        return
    told = answer.headers["content-range"]
    part = f"--cut\r\nContent-Range: {told}\r\n\r\n".encode() + answer.body + b"\r\n--cut--\r\n"
    headers = {name: text for name, text in answer.headers.items() if name != "content-range"}
    exchange.send(
        Answer(206, {**headers, "content-type": "multipart/byteranges; boundary=cut"}, part[:end]),
        announced=None if end is None else len(part),
    )


def _truncated_multipart(exchange: Exchange) -> None:
    _multipart(exchange, end=60)


def _shifted_ranges(exchange: Exchange) -> None:
    answer = exchange.origin()
    if answer.status == 206:
        answer = Answer(206, {**answer.headers, "content-range": "bytes 7-9/10"}, answer.body[:3])
    exchange.send(answer)


def _close_between_requests(exchange: Exchange) -> None:
    exchange.send(exchange.origin().having(connection="keep-alive"))
    exchange.keeps_open = False


def _fall_silent_now_and_then(exchange: Exchange) -> None:
    answer = exchange.origin()
    if exchange.number % 4 == 1:
        exchange.send_head(answer, content_length=str(len(answer.body)))
        exchange.raw(answer.body[: len(answer.body) // 2])
        exchange.stay_silent()
    else:
        exchange.send(answer)


def _refuse_now_and_then(exchange: Exchange) -> None:
    if exchange.number % 2 == 0:
        exchange.send(Answer(429, {"Retry-After": "7"}, b"slower"))
    else:
        honest(exchange)


def _redirect_content(exchange: Exchange) -> None:
    """Redirect once, as a mirror network does."""
    if exchange.is_content and not exchange.path.endswith("?here"):
        exchange.send(Answer(302, {"Location": f"{exchange.path}?here"}, b""))
    else:
        exchange.send(exchange.origin(exchange.path.removesuffix("?here")))


#: Networks that the limits of speed are for.
_SLOW = frozenset({_trickle, _fall_silent_now_and_then})


@_BOTH_ENGINES
@pytest.mark.parametrize(
    "personality",
    [
        _strip_ranges,
        _leave_out_the_length,
        _leave_out_the_length_and_cut,
        _send_chunks,
        _trickle,
        _reset,
        _announce_too_much,
        _announce_too_little_content,
        _multipart,
        _truncated_multipart,
        _shifted_ranges,
        _close_between_requests,
        _fall_silent_now_and_then,
        _refuse_now_and_then,
        _redirect_content,
        cutting(3000),
    ],
    ids=lambda personality: personality.__name__.strip("_"),
)
def test_the_device_gets_through(traveller: Traveller, personality: Personality) -> None:
    with network(traveller.scene.port, personality) as hostile:
        assert isinstance(traveller.update(hostile.url, is_slow=personality in _SLOW), Updated)
    traveller.arrives()


@_BOTH_ENGINES
def test_the_device_gets_through_a_network_that_speaks_ipv6_only(traveller: Traveller) -> None:
    with network(traveller.scene.port, honest, host="::1") as hostile:
        assert isinstance(traveller.update(hostile.url), Updated)
    traveller.arrives()


def test_a_server_that_asks_to_be_left_alone_is(traveller: Traveller) -> None:
    with network(traveller.scene.port, _refuse_now_and_then) as hostile:
        traveller.update(hostile.url)
    assert traveller.waits
    assert min(traveller.waits) >= 7


@contextmanager
def _lossy_namespace() -> Iterator[str]:
    """A network of its own whose loopback loses every tenth packet."""
    name = f"lossy-{secrets.token_hex(4)}"
    ip, nft = need("ip"), need("nft")

    def inside(*command: str) -> None:
        subprocess.run([ip, "netns", "exec", name, *command], check=True, capture_output=True)

    subprocess.run([ip, "netns", "add", name], check=True, capture_output=True)
    try:
        inside(ip, "link", "set", "lo", "up")
        inside(nft, "add table inet lossy")
        inside(nft, "add chain inet lossy input { type filter hook input priority 0; }")
        # Counted and not drawn: what is sent again gets through, and something is lost in every run.
        inside(nft, "add rule inet lossy input numgen inc mod 10 0 counter drop")
        yield name
        told = subprocess.run([ip, "netns", "exec", name, nft, "list", "ruleset"], check=True, capture_output=True)
        dropped = re.search(rb"packets (\d+)", told.stdout)
        assert dropped is not None
        assert int(dropped[1]) > 0
    finally:
        subprocess.run([ip, "netns", "delete", name], check=True, capture_output=True)


def test_the_device_gets_through_ten_percent_of_packet_loss(traveller: Traveller) -> None:
    with _lossy_namespace() as namespace, ExitStack() as open_sockets:
        made = within(namespace, lambda: socket.create_server(("127.0.0.1", 0)))
        listening = open_sockets.enter_context(made)
        with network(traveller.scene.port, honest, listening=listening) as hostile:
            within(namespace, lambda: traveller.update(hostile.url))
    traveller.arrives()


# Networks in which it cannot, and what it says.


@dataclass(frozen=True)
class Trouble:
    """A network, and what a device must say in it."""

    name: str
    personality: Personality
    error: type[OverhaulError]
    says: str
    exit_code: int = 5
    #: Whether waiting and asking again was worth it; None where that hangs on when bytes arrive.
    is_repeated: bool | None = False
    #: Whether it is for the limits of speed to end it.
    is_slow: bool = False


def _status(status: int, **headers: str) -> Personality:
    return lambda exchange: exchange.send(Answer(status, {}, b"<h1>no</h1>").having(**headers))


_PAGE = Answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"\r\n<!DOCTYPE html><title>Welcome</title>")


def _portal_of_content(exchange: Exchange) -> None:
    if exchange.is_content:
        exchange.send(_PAGE)
    else:
        honest(exchange)


def _redirect_to_login(exchange: Exchange) -> None:
    if exchange.path == "/login":
        exchange.send(Answer(200, {}, _PAGE.body))
    else:
        exchange.send(Answer(302, {"Location": "/login"}, b""))


def _unchanged_content(exchange: Exchange) -> None:
    if exchange.is_content:
        exchange.send(Answer(304, {}, b""))
    else:
        honest(exchange)


def _announce_more_than_signed(exchange: Exchange) -> None:
    answer = exchange.origin()
    exchange.send(answer, announced=len(answer.body) + 10 if exchange.is_content else None)


def _circle(exchange: Exchange) -> None:
    exchange.send(Answer(302, {"Location": exchange.path}, b""))


def _recode(exchange: Exchange) -> None:
    import gzip

    answer = exchange.origin()
    exchange.send(Answer(answer.status, {**answer.headers, "content-encoding": "gzip"}, gzip.compress(answer.body)))


def _flip(exchange: Exchange) -> None:
    answer = exchange.origin()
    harmed = bytearray(answer.body)
    if exchange.is_content:
        harmed[len(harmed) // 2] ^= 1
    exchange.send(Answer(answer.status, answer.headers, bytes(harmed)))


def _flip_metadata(exchange: Exchange) -> None:
    answer = exchange.origin()
    harmed = bytearray(answer.body)
    if harmed:
        harmed[0] ^= 1
    exchange.send(Answer(answer.status, answer.headers, bytes(harmed)))


class _Swapping:
    """Answers a request for content with the content asked for before."""

    def __init__(self) -> None:
        self._before: str | None = None

    def __call__(self, exchange: Exchange) -> None:
        path = exchange.path
        exchange.send(exchange.origin((self._before or "/metadata/timestamp.json") if exchange.is_content else path))
        self._before = path


def _announce_too_little(exchange: Exchange) -> None:
    answer = exchange.origin()
    exchange.send(answer, announced=max(0, len(answer.body) - 10))


def _slowloris(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not exchange.closing.wait(0.05):
        exchange.connection.sendall(b"X-Slow: 1\r\n")


def _endless_headers(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while not exchange.closing.is_set():
        exchange.connection.sendall(b"X-%d: %b\r\n" % (number, b"." * 5000))
        number += 1


def _endless_body(exchange: Exchange) -> None:
    exchange.send_head(Answer(200, {"Content-Type": "application/json"}, b""))
    while not exchange.closing.is_set():
        exchange.raw(b" " * 65536)


def _silence(exchange: Exchange) -> None:
    exchange.stay_silent()


def _silence_behind_headers(exchange: Exchange) -> None:
    exchange.send_head(Answer(200, {"Content-Type": "application/json"}, b""), content_length="500")
    exchange.stay_silent()


def _another_protocol(exchange: Exchange) -> None:
    exchange.connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)
    exchange.keeps_open = False


def _close_at_once(exchange: Exchange) -> None:
    exchange.keeps_open = False


def _reset_at_once(exchange: Exchange) -> None:
    exchange.reset()


_TROUBLES = (
    Trouble("a captive portal", lambda exchange: exchange.send(_PAGE), LoginPageError, "sign in"),
    Trouble("a captive portal from the middle on", _portal_of_content, LoginPageError, "sign in"),
    Trouble("a redirect to a login page", _redirect_to_login, LoginPageError, "/login answered with a web page"),
    Trouble("status 511", _status(511), RefusedStatusError, "status 511; .*sign in"),
    Trouble("status 401", _status(401), RefusedStatusError, "status 401; .*password"),
    Trouble("status 403", _status(403), RefusedStatusError, "status 403; .*forbids"),
    Trouble("status 407", _status(407), RefusedStatusError, "status 407; .*`proxy`"),
    Trouble("status 404", _status(404), RefusedStatusError, "status 404; .*address"),
    Trouble("status 429", _status(429), RefusedStatusError, "status 429; .*later", is_repeated=True),
    Trouble("status 500", _status(500), RefusedStatusError, "status 500; .*later", is_repeated=True),
    Trouble("status 502", _status(502), RefusedStatusError, "status 502; .*later", is_repeated=True),
    Trouble("status 503", _status(503), RefusedStatusError, "status 503; .*later", is_repeated=True),
    Trouble("status 503 for an hour", _status(503, Retry_After="3600"), RefusedStatusError, "alone for 3600 s"),
    Trouble(
        "status 503 until a date",
        _status(503, Retry_After="Fri, 01 Jan 2027 01:00:00 GMT", Date="Fri, 01 Jan 2027 00:00:00 GMT"),
        RefusedStatusError,
        "alone for 3600 s",
    ),
    Trouble("lengths that are not the signed ones", _announce_more_than_signed, OversizeError, "signed", exit_code=4),
    Trouble("status 304 for what is not known", _unchanged_content, RefusedStatusError, "status 304; a cache"),
    Trouble("a proxy that recodes", _recode, RecodedAnswerError, "'gzip'.*use https"),
    Trouble("a proxy that changes content", _flip, WrongDigestError, "changes it.*https", exit_code=4),
    Trouble("a proxy that changes metadata", _flip_metadata, MalformedMetadataError, "use https", exit_code=4),
    Trouble("a cache that swaps files", _Swapping(), OverhaulError, "signed", exit_code=4),
    # What the length leaves over may meet the next request on the same connection, which is then sent again.
    Trouble(
        "lengths too short",
        _announce_too_little,
        MalformedMetadataError,
        "cuts or changes",
        exit_code=4,
        is_repeated=None,
    ),
    Trouble(
        "headers that trickle", _slowloris, UnreachableError, "slower than|timed out", is_repeated=True, is_slow=True
    ),
    Trouble("headers without end", _endless_headers, UnreachableError, "header", is_repeated=True),
    Trouble("a body without end", _endless_body, OversizeError, "more than", exit_code=4),
    Trouble("a circle of redirects", _circle, UnreachableError, "redirects more than", is_repeated=True),
    Trouble("silence", _silence, UnreachableError, "slower than|timed out", is_repeated=True, is_slow=True),
    Trouble(
        "silence behind headers", _silence_behind_headers, InterruptedTransferError, "slower|timed out", is_slow=True
    ),
    Trouble("another protocol", _another_protocol, UnreachableError, "check the network", is_repeated=True),
    Trouble("a connection closed at once", _close_at_once, UnreachableError, "check the network", is_repeated=True),
    Trouble("a connection reset at once", _reset_at_once, UnreachableError, "check the network", is_repeated=True),
)


def _refused(traveller: Traveller, trouble: Trouble, url: str, **options: object) -> None:
    """Check that an update fails as it should, in one sentence."""
    with pytest.raises(trouble.error) as caught:
        traveller.update(url, is_slow=trouble.is_slow, **options)  # type: ignore[arg-type]  # whatever a test varies
    sentence = str(caught.value)
    assert caught.value.exit_code == trouble.exit_code
    assert re.search(trouble.says, sentence), sentence
    assert "\n" not in sentence
    if trouble.is_repeated is not None:
        assert bool(traveller.waits) is trouble.is_repeated or trouble.error is InterruptedTransferError
    assert sum(traveller.waits) <= 5 * 60


@pytest.mark.parametrize("trouble", _TROUBLES, ids=lambda trouble: trouble.name)
def test_the_device_says_what_is_wrong_and_stands(traveller: Traveller, trouble: Trouble) -> None:
    with network(traveller.scene.port, trouble.personality) as hostile:
        _refused(traveller, trouble, hostile.url)
    traveller.stands()


@_BOTH_ENGINES
@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        ({}, "intercepts"),
        ({"begins_in_days": -9, "ends_in_days": -1}, "clock"),
        ({"begins_in_days": 5, "ends_in_days": 9}, "clock"),
        ({"address": "127.0.0.2"}, "another name"),
    ],
    ids=["unknown authority", "expired", "not yet valid", "another name"],
)
def test_a_certificate_that_is_not_to_be_trusted_is_named(
    traveller: Traveller, certificate: dict[str, object], says: str, tmp_path: Path
) -> None:
    shown = write_certificate(tmp_path / "shown.pem", **certificate)  # type: ignore[arg-type]  # of a table
    known = None if not certificate else shown
    trouble = Trouble("", honest, UntrustedServerError, f"certificate.*{says}")
    with network(traveller.scene.port, honest, certificate=shown) as hostile:
        _refused(traveller, trouble, hostile.url, ca_file=known)
        assert hostile.requests == 0
    traveller.stands()


@_BOTH_ENGINES
def test_a_redirect_to_plain_http_is_not_followed(traveller: Traveller, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "shown.pem")

    def down(exchange: Exchange) -> None:
        exchange.send(Answer(302, {"Location": f"http://127.0.0.1:{traveller.scene.port}{exchange.path}"}, b""))

    trouble = Trouble("", down, InsecureRedirectError, "redirects to http://.*sign in", exit_code=4)
    with network(traveller.scene.port, down, certificate=certificate) as hostile:
        _refused(traveller, trouble, hostile.url, ca_file=certificate)
    traveller.stands()


@_BOTH_ENGINES
@pytest.mark.parametrize("status", [403, 407])
def test_a_proxy_that_refuses_to_connect_is_named(traveller: Traveller, status: int) -> None:
    trouble = Trouble("", _status(status), ProxyRefusedError, f"through the proxy http://127.* \\(.*{status}.*`proxy`")
    with network(traveller.scene.port, _status(status)) as hostile:
        proxy = hostile.url.replace("//", "//user:secret@")
        _refused(traveller, trouble, "https://updates.example", proxy=proxy)
    traveller.stands()


def test_the_password_of_a_proxy_is_not_told(traveller: Traveller) -> None:
    with network(traveller.scene.port, _status(403)) as hostile, pytest.raises(ProxyRefusedError) as caught:
        traveller.update("https://updates.example", proxy=hostile.url.replace("//", "//user:secret@"))
    assert "secret" not in str(caught.value)


@_BOTH_ENGINES
@pytest.mark.parametrize("url", ["http://nowhere.invalid", "http://127.0.0.1:9"], ids=["no such name", "nobody there"])
def test_a_server_that_is_not_there_is_named(traveller: Traveller, url: str) -> None:
    trouble = Trouble(
        "", honest, UnreachableError, "cannot be reached.*check the network", is_repeated=True, is_slow=True
    )
    _refused(traveller, trouble, url)
    traveller.stands()


def test_an_old_copy_from_a_cache_is_refused_as_a_step_back(traveller: Traveller) -> None:
    def stale(exchange: Exchange) -> None:
        is_timestamp = exchange.path == "/metadata/timestamp.json"
        exchange.send(traveller.scene.old_timestamp if is_timestamp else exchange.origin())

    honest_url = f"http://127.0.0.1:{traveller.scene.port}"
    text = re.sub(r"(?m)^urls = .*", f'urls = ["{honest_url}"]', traveller.device.configuration.read_text())
    traveller.device.configuration.write_text(text)
    check(traveller.device.device)
    with network(traveller.scene.port, stale) as hostile:
        _refused(traveller, Trouble("", stale, RollbackError, "a cache", exit_code=4), hostile.url)
    traveller.stands()


def test_a_cache_that_says_unchanged_for_ever_is_found_out_when_the_signature_ends(traveller: Traveller) -> None:
    def frozen(exchange: Exchange) -> None:
        is_known = "if-none-match" in exchange.headers
        exchange.send(Answer(304, {}, b"") if is_known else exchange.origin())

    with network(traveller.scene.port, frozen) as hostile:
        assert isinstance(traveller.update(hostile.url), Checked)
        later = Trouble("", frozen, StaleRepositoryError, "check the clock first", exit_code=4)
        _refused(traveller, later, hostile.url, clock=lambda: datetime.now(UTC) + timedelta(days=3))
    traveller.stands()


def test_a_clock_far_ahead_is_named(traveller: Traveller) -> None:
    trouble = Trouble("", honest, StaleRepositoryError, "its clock is wrong.*check the clock", exit_code=4)
    with network(traveller.scene.port, honest) as hostile:
        _refused(traveller, trouble, hostile.url, clock=lambda: datetime(2099, 1, 1, tzinfo=UTC))
    traveller.stands()


def test_a_portal_is_left_behind_as_soon_as_somebody_signed_in(traveller: Traveller) -> None:
    def portal(exchange: Exchange) -> None:
        exchange.send(_PAGE)

    with network(traveller.scene.port, portal) as hostile:
        with pytest.raises(NetworkError):
            traveller.update(hostile.url)
        hostile.personality = honest
        assert isinstance(traveller.update(hostile.url), Updated)
    traveller.arrives()


@pytest.mark.parametrize(("personality", "exit_code"), [(_status(511), 5), (_flip_metadata, 4)])
def test_the_command_leaves_with_the_code_of_the_trouble(
    traveller: Traveller, personality: Personality, exit_code: int
) -> None:
    with network(traveller.scene.port, personality) as hostile:
        text = re.sub(r"(?m)^urls = .*", f'urls = ["{hostile.url}"]', traveller.device.configuration.read_text())
        traveller.device.configuration.write_text(text)
        command = [sys.executable, "-m", "overhaul", "device", "update", "--config"]
        done = subprocess.run(
            [*command, traveller.device.configuration], capture_output=True, text=True, check=False, env={**os.environ}
        )
    assert done.returncode == exit_code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("Error: ")
