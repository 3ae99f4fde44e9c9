"""Signing in through an identity provider (a stand-in, see `tests/oidc_provider.py`), and what proves nothing."""

import base64
import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from playwright.sync_api import expect
from tests.asgi import Site, running
from tests.browser import chromium, open_page
from tests.oidc_provider import CLIENT, SECRET, Claims, Provider, provider
from tests.published import PublishedRepository
from tests.waiting import PATIENCE_S

from overhaul.server.app import create_app
from overhaul.server.database.engine import Database
from overhaul.server.operators.accounts import Operators, Role
from overhaul.server.operators.audit import AuditLog
from overhaul.server.operators.oidc import IdentityProvider, UnusableProviderError
from overhaul.server.settings import OidcAccess, ServerSettings


@dataclass
class World:
    provider: Provider
    site: Site
    audit: AuditLog

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.site.url, timeout=PATIENCE_S)

    def begin(self, client: httpx2.Client) -> str:
        """Go to the provider and let it lead back; return the path and query it leads to."""
        asked = client.get("login/oidc")
        assert asked.status_code == 303
        cookie = asked.headers["set-cookie"]
        assert all(word in cookie for word in ("__Host-", "Secure", "HttpOnly", "SameSite=lax"))
        self.cookie = {"cookie": cookie.partition(";")[0]}
        back = httpx2.get(asked.headers["location"], timeout=PATIENCE_S).headers["location"]
        return urlsplit(back).path + "?" + urlsplit(back).query

    def sign_in(self) -> httpx2.Response:
        with self.client() as client:
            return client.get(self.begin(client), headers=self.cookie)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    published = PublishedRepository(tmp_path_factory.mktemp("oidc") / "repository")
    published.publish("1.0", "b1")
    (published.directory / "client-secret").write_text(SECRET + "\n")
    settings = published.directory / "overhaul.toml"
    with provider() as known:
        text = settings.read_text().replace("\nenabled = false\n", "\nenabled = true\n")
        # Nothing answers there yet: the address is known once the server listens.
        table = (
            f'\n[server.operators.oidc]\nissuer = "{known.url}"\nclient_id = "{CLIENT}"\nallow_http = true\n'
            'client_secret_file = "client-secret"\nredirect_url = "REDIRECT"\nlabel = "Sign in with the house"\n'
        )
        settings.write_text(text + table)
        configured = ServerSettings.of_repository(published.directory)
        assert configured.operators is not None
        assert configured.operators.oidc is not None
        application = create_app(configured)
        with running(application) as site:
            known.redirect_url = f"{site.url}login/oidc/back"
            # The record is frozen for everybody else; a port that is not known beforehand is the test's own trouble.
            object.__setattr__(configured.operators.oidc, "redirect_url", known.redirect_url)
            database = Database(configured.database_url)
            Operators(database).add("ada", role=Role.OPERATOR, password=None)
            database.close()
            yield World(known, site, AuditLog(configured.operators.audit))


@pytest.fixture(autouse=True)
def _honest(world: World) -> Iterator[None]:
    yield
    world.provider.person = "ada"
    world.provider.change = lambda claims: claims
    world.provider.make = world.provider.sign


def test_somebody_the_provider_vouches_for_signs_in_with_a_browser(world: World) -> None:
    with chromium() as browser:
        watched = open_page(browser, f"{world.site.url}login")
        watched.page.get_by_role("link", name="Sign in with the house").click()
        expect(watched.page.get_by_role("heading", name="Fleet", level=1)).to_be_visible()
        assert "ada" in watched.page.locator("form.who").inner_text()
        assert watched.complaints == []
    record = world.audit.recent(limit=1)[0]
    assert (record.operator, record.act, record.result) == ("ada", "login by provider", "done")


def test_an_honest_answer_is_taken_once(world: World) -> None:
    with world.client() as client:
        back = world.begin(client)
        first = client.get(back, headers=world.cookie)
        again = client.get(back, headers=world.cookie)
    assert first.status_code == 200
    assert "__Host-overhaul=" in first.headers["set-cookie"]
    assert again.status_code == 502
    assert "__Host-overhaul=" not in again.headers["set-cookie"]


def _set(**changes: object) -> Callable[[Claims], Claims]:
    return lambda claims: {**claims, **changes}


def _without(name: str) -> Callable[[Claims], Claims]:
    return lambda claims: {key: value for key, value in claims.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        _set(nonce="another"),
        _without("nonce"),
        _set(aud="another-client"),
        _without("aud"),
        _set(aud=[CLIENT, "another-client"], azp="another-client"),
        _set(iss="https://elsewhere.example"),
        _without("iss"),
        _set(exp=1_000_000_000),
        _without("exp"),
        _set(iat=4_000_000_000),
        _set(preferred_username=""),
        _set(preferred_username=["ada"]),
        _without("preferred_username"),
    ],
)
def test_a_token_with_a_wrong_word_signs_nobody_in(world: World, change: Callable[[Claims], Claims]) -> None:
    world.provider.change = change
    _refused(world, world.sign_in())


def _refused(world: World, answer: httpx2.Response) -> None:
    assert answer.status_code == 403
    assert "__Host-overhaul=" not in answer.headers["set-cookie"].replace("__Host-overhaul-", "")
    assert "was refused" in answer.text
    assert "was refused" in world.audit.recent(limit=1)[0].result


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _token(header: dict[str, str], claims: Claims) -> str:
    """Return the signed part of a token."""
    return ".".join(_text(json.dumps(part).encode()) for part in (header, claims))


def _unsigned(claims: Claims) -> str:
    return _token({"alg": "none"}, claims) + "."


def test_a_token_that_the_provider_did_not_sign_signs_nobody_in(world: World) -> None:
    other = RSAKey.generate_key(2048, {"kid": "one"})
    public = world.provider.key.as_pem(private=False)

    def confused(claims: Claims) -> str:
        signed = _token({"alg": "HS256", "kid": "one"}, claims)
        return f"{signed}.{_text(hmac.digest(public, signed.encode(), 'sha256'))}"

    def cut(claims: Claims) -> str:
        return world.provider.sign(claims)[:-4]

    for make in (
        _unsigned,
        confused,
        cut,
        lambda claims: jwt.encode({"alg": "RS256", "kid": "one"}, claims, other),
        lambda _claims: "no token",
    ):
        world.provider.make = make
        _refused(world, world.sign_in())


def test_an_answer_that_belongs_to_another_browser_or_question_signs_nobody_in(world: World) -> None:
    with world.client() as client:
        back = world.begin(client)
        _refused(world, client.get(back))
        _refused(world, client.get(back, headers={"cookie": "__Host-overhaul-oidc=another"}))
        _refused(world, client.get(back.replace("state=", "state=x"), headers=world.cookie))
        _refused(world, client.get(back.replace("iss=http", "iss=https"), headers=world.cookie))
        _refused(world, client.get("login/oidc/back?error=access_denied", headers=world.cookie))


def test_nobody_is_added_because_the_provider_knows_them(world: World) -> None:
    world.provider.person = "eve"
    answer = world.sign_in()
    assert answer.status_code == 404
    assert "There is no operator" in answer.text
    assert world.audit.recent(limit=1)[0].operator == "eve"


def test_a_key_that_the_provider_changed_to_is_learned(world: World) -> None:
    assert world.sign_in().status_code == 200
    world.provider.key = RSAKey.generate_key(2048, {"kid": "two"})
    assert world.sign_in().status_code == 200


def test_a_provider_that_anybody_can_imitate_is_refused() -> None:
    access = OidcAccess(
        issuer="http://sso.example", client_id="c", client_secret_file=None, redirect_url="https://x/login/oidc/back",
        name_claim="sub", scope="openid", label="x", ca_file="", allow_http=False,
    )  # fmt: skip
    with pytest.raises(UnusableProviderError, match="not https"):
        IdentityProvider(access)


def test_a_provider_that_is_away_is_said_in_words(tmp_path: Path) -> None:
    published = PublishedRepository(tmp_path / "repository")
    settings = published.directory / "overhaul.toml"
    text = settings.read_text().replace("\nenabled = false\n", "\nenabled = true\n")
    table = (
        '\n[server.operators.oidc]\nissuer = "http://127.0.0.1:9"\nclient_id = "c"\nallow_http = true\n'
        'redirect_url = "https://x/login/oidc/back"\n'
    )
    settings.write_text(text + table)
    with running(create_app(ServerSettings.of_repository(published.directory))) as site:
        answer = site.ask("/login/oidc")
        assert answer.status == 502
        assert b"does not answer sensibly" in answer.body
        assert site.ask("/login").status == 200, "passwords still work"
