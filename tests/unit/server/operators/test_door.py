"""What stands before the dashboard: whatever is sent to it is answered, and never by an error of ours."""

import random
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from tests.asgi import Answer, Site, running
from tests.published import PublishedRepository

from overhaul.server.app import create_app
from overhaul.server.database.engine import Database
from overhaul.server.operators.accounts import Operators, Role
from overhaul.server.operators.door import safe_next
from overhaul.server.operators.sessions import Sessions, form_token
from overhaul.server.settings import ServerSettings

FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedRepository:
    published = PublishedRepository(tmp_path_factory.mktemp("door") / "repository")
    published.publish("1.0", "b1")
    return published


@pytest.fixture(scope="module")
def token(site: Site, published: PublishedRepository) -> str:
    """Return the cookie of an operator who is signed in."""
    database = Database(ServerSettings.of_repository(published.directory).database_url)
    Operators(database).add("ada", role=Role.OPERATOR, password=None)
    made = Sessions(database, idle_s=3600, longest_s=3600).begin("ada", now=int(published.now))
    database.close()
    return made


@pytest.fixture(scope="module")
def site(published: PublishedRepository) -> Iterator[Site]:
    settings = published.directory / "overhaul.toml"
    settings.write_text(settings.read_text().replace("\nenabled = false\n", "\nenabled = true\n"))
    with running(create_app(ServerSettings.of_repository(published.directory), clock=published.clock)) as found:
        yield found


@pytest.mark.parametrize("path", ["/fleet", "/fleet/audit", "/fleet/release?product=x", "/fleet/review", "/fleet/act"])
def test_whoever_is_not_signed_in_is_sent_to_the_login(site: Site, path: str) -> None:
    method = "POST" if path.endswith(("review", "act")) else "GET"
    for cookie in ("", "__Host-overhaul=", "__Host-overhaul=" + "a" * 43, "__Host-overhaul=ä"):
        answer = site.ask(path, method=method, body=b"", cookie=cookie.encode().decode("latin-1"), content_type=FORM)
        assert answer.status == 303
        assert answer.header("location").startswith("/login?next=%2Ffleet")


def test_pages_forbid_scripts_frames_and_being_kept(site: Site) -> None:
    answer = site.ask("/login")
    policy = answer.header("content-security-policy")
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.header("cache-control") == "no-store"
    assert b"<script" not in answer.body
    assert b" style=" not in answer.body
    cookie = answer.header("set-cookie")
    assert all(word in cookie for word in ("__Host-", "Secure", "HttpOnly", "SameSite=strict", "Path=/"))


def _send(site: Site, body: bytes, content_type: str = FORM) -> Answer:
    answer = site.ask("/login", method="POST", body=body, content_type=content_type, cookie="__Host-overhaul-login=abc")
    assert answer.status in {401, 403}, answer.status
    assert "__Host-overhaul=" not in answer.header("set-cookie")
    return answer


def test_forms_that_are_none_are_refused(site: Site) -> None:
    for body in (
        b"",
        b"\xff\xfe=\xff",
        b"%ff=%00&form_token=%e4",
        b"a=b&" * 1000,
        b"x" * (33 << 10),
        b"form_token=" + b"0" * 64,
        b"name=ada&password=guess",
    ):
        assert _send(site, body).status == 403
    assert _send(site, b'{"name": "ada"}', "application/json").status == 403
    chance = random.Random(5)
    for _ in range(50):
        _send(site, chance.randbytes(chance.randrange(200)))


def test_only_pages_of_the_dashboard_follow_a_login() -> None:
    for given in (
        "",
        "https://evil.example",
        "//evil.example",
        "/\\evil",
        "/fleet\\..\\",
        "/fleet\r\nx: y",
        "javascript:",
    ):
        assert safe_next(given) == "/fleet"
    assert safe_next("/fleet/release?product=kiosk&channel=stable") == "/fleet/release?product=kiosk&channel=stable"


#: What a template engine would make 62615533 of, which no token or time contains by chance.
_TEMPLATE = "{{ 7919 * 7907 }}"
_HOSTILE = (
    "", " ", "\0", "\u2028", "ä" * 600, "../../etc", "<script>alert(1)</script>", "1e999", "nan", "-1", "inf", "٣",
    "9" * 400, "0x10", _TEMPLATE, "'; DROP TABLE operators; --", "\r\nset-cookie: a=b", "2027-01-01 nan",
    "9999-12-31 23:59:59 5\n0001-01-01 3", "\n".join(["2027-01-01 5"] * 20),
)  # fmt: skip


def test_hostile_words_in_every_field_are_refused_or_mean_nothing(site: Site, token: str) -> None:
    well = {
        "form_token": form_token(token), "kind": "rollout", "product": "alpha", "channel": "stable", "variant": "desk",
        "arch": "amd64", "version": "1.0", "build_id": "b1", "percent": "5", "revision": "2",
    }  # fmt: skip

    def review(**changes: str) -> Answer:
        body = urlencode({**well, **changes}).encode()
        cookie = f"__Host-overhaul={token}"
        return site.ask("/fleet/review", method="POST", body=body, content_type=FORM, cookie=cookie)

    assert review().status == 200
    for name in (*well, "source", "steps", "reason", "allow_lower", "sure", "unknown"):
        for kind in ("rollout", "promote", "recall"):
            for word in _HOSTILE:
                answer = review(**{"kind": kind, name: word})
                assert answer.status in {200, 400, 403, 404, 409}, (name, word, answer.status)
                assert b"<script>alert" not in answer.body
                assert b"62615533" not in answer.body
    for query in ("period=%00", "product=" + "x" * 5000, "channel=%F0%9F%92%A9", "route=../..", "period=24h&period=x"):
        assert site.ask(f"/fleet?{query}", cookie=f"__Host-overhaul={token}").status == 200
        assert site.ask(f"/fleet/release?{query}", cookie=f"__Host-overhaul={token}").status == 404
