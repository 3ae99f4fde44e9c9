"""Signing in through an identity provider: OpenID Connect, authorization code with PKCE; blocking.

    browser → /login/oidc → provider → /login/oidc/back → session

Everything that must come back is derived from one random cookie: state (the answer belongs to this browser), nonce (the
identity token was made for this question) and the PKCE verifier (who stole the code cannot use it). The token's
signature, issuer, audience, times and nonce are checked; what it says of the person is used for nothing but to find
the operator of that name, who was added before. Roles are never the provider's to give.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import msgspec

from overhaul.errors import NetworkError, OperatorError, TrustError
from overhaul.server.settings import OidcAccess

#: Both halves of the cookie's life: from the question to the answer.
COOKIE_S = 600
_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 256 << 10
_KEEP_S = 3600.0
#: Never `none`, and never one for which the public key would be the secret.
_ALGORITHMS = ["RS256", "PS256", "ES256", "ES384", "EdDSA", "Ed25519"]
_CLOCKS_DIFFER_S = 60


class ProviderFailedError(NetworkError):
    """The identity provider does not answer, or not sensibly."""

    http_status = 502

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"The identity provider does not answer sensibly at {url} ({reason}); try again later.")


class UnusableProviderError(OperatorError):
    """The configuration of the identity provider cannot be used."""


class RefusedIdentityError(TrustError):
    """What came back from the provider does not prove who somebody is."""

    http_status = 403

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The identity provider's answer was refused: {reason}. Begin again at the login page.")


class _Discovered(msgspec.Struct, frozen=True, kw_only=True):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one sign-in is made of; all from the bits of its cookie."""

    cookie: str

    @property
    def state(self) -> str:
        """What the provider hands back unchanged."""
        return self._derived(b"state")

    @property
    def nonce(self) -> str:
        """What the identity token must name."""
        return self._derived(b"nonce")

    @property
    def verifier(self) -> str:
        """What only who asked can give with the code."""
        return self._derived(b"verifier")

    @property
    def challenge(self) -> str:
        """The digest of the verifier, which the provider is told first."""
        return _unpadded(hashlib.sha256(self.verifier.encode()).digest())

    def _derived(self, purpose: bytes) -> str:
        return _unpadded(hmac.new(self.cookie.encode(), b"overhaul oidc 1 " + purpose, hashlib.sha256).digest())


class IdentityProvider:
    """One provider; what it tells of itself is kept for an hour."""

    def __init__(self, access: OidcAccess, *, clock: Callable[[], float] = time.time) -> None:
        self._access = access
        self._clock = clock
        self._discovered: tuple[float, _Discovered] | None = None
        self._keys: tuple[float, bytes] | None = None
        if not access.issuer.startswith("https://") and not access.allow_http:
            raise UnusableProviderError(
                f"The issuer {access.issuer} is not https; a provider that others can imitate proves nothing. Give "
                "its https address in [server.operators.oidc]."
            )

    def address(self, question: Question) -> str:
        """Return where the browser is sent."""
        asked = {
            "response_type": "code",
            "client_id": self._access.client_id,
            "redirect_uri": self._access.redirect_url,
            "scope": self._access.scope,
            "state": question.state,
            "nonce": question.nonce,
            "code_challenge": question.challenge,
            "code_challenge_method": "S256",
        }
        endpoint = self._discover().authorization_endpoint
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}"

    def name_of(self, question: Question, *, code: str, state: str, issuer: str = "") -> str:
        """Return the name that the provider vouches for.

        Raises:
            RefusedIdentityError: The answer proves nothing.
            ProviderFailedError: The provider does not answer.
        """
        if not code or not hmac.compare_digest(state.encode(), question.state.encode()):
            raise RefusedIdentityError("it does not belong to a question of this browser")
        if issuer and issuer != self._access.issuer:
            raise RefusedIdentityError(f"it is {issuer}'s")
        return self._checked_name(self._token(code, question), question)

    def _token(self, code: str, question: Question) -> str:
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._access.redirect_url,
            "client_id": self._access.client_id,
            "code_verifier": question.verifier,
        }
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        if (secret := self._access.read_secret()) is not None:
            pair = f"{quote(self._access.client_id, safe='')}:{quote(secret, safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        endpoint = self._discover().token_endpoint
        answer = self._ask("POST", endpoint, body=urlencode(fields).encode(), headers=headers)
        try:
            return msgspec.json.decode(answer, type=_Tokens).id_token
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise ProviderFailedError(url=endpoint, reason=str(error)) from error

    def _checked_name(self, token: str, question: Question) -> str:
        from joserfc import jwt
        from joserfc.errors import JoseError

        try:
            claims = self._verified(token)
            registry = jwt.JWTClaimsRegistry(
                now=int(self._clock()),
                leeway=_CLOCKS_DIFFER_S,
                iss={"essential": True, "value": self._access.issuer},
                aud={"essential": True, "value": self._access.client_id},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": question.nonce},
            )
            registry.validate(claims)
        except (JoseError, ValueError, TypeError) as error:
            raise RefusedIdentityError(str(error).rstrip(".")) from error
        if claims.get("azp", self._access.client_id) != self._access.client_id:
            raise RefusedIdentityError("its token was made for another client")
        name = claims.get(self._access.name_claim)
        if not isinstance(name, str) or not name:
            raise RefusedIdentityError(f"its token says no {self._access.name_claim}")
        return name

    def _verified(self, token: str) -> dict[str, object]:
        from joserfc import jwt
        from joserfc.errors import BadSignatureError, JoseError
        from joserfc.jwk import KeySet

        first: JoseError | ValueError | None = None
        for fresh in (False, True):  # keys change; ask once more before saying no
            keys = KeySet.import_key_set(msgspec.json.decode(self._key_set(fresh=fresh)))
            try:
                return dict(jwt.decode(token, keys, algorithms=_ALGORITHMS).claims)
            except BadSignatureError:
                raise
            except (JoseError, ValueError) as error:
                first = first or error
        assert first is not None  # noqa: S101 - the loop ran
        raise first

    def _discover(self) -> _Discovered:
        now = self._clock()
        if self._discovered is None or not 0 <= now - self._discovered[0] < _KEEP_S:
            url = f"{self._access.issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                found = msgspec.json.decode(self._ask("GET", url), type=_Discovered)
            except (msgspec.MsgspecError, UnicodeError) as error:
                raise ProviderFailedError(url=url, reason=str(error)) from error
            if found.issuer != self._access.issuer:
                raise ProviderFailedError(url=url, reason=f"it says it is {found.issuer}")
            for endpoint in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri):
                if not endpoint.startswith("https://") and not self._access.allow_http:
                    raise ProviderFailedError(url=url, reason=f"{endpoint} is not https")
            self._discovered = (now, found)
        return self._discovered[1]

    def _key_set(self, *, fresh: bool) -> bytes:
        now = self._clock()
        if fresh or self._keys is None or not 0 <= now - self._keys[0] < _KEEP_S:
            self._keys = (now, self._ask("GET", self._discover().jwks_uri))
        return self._keys[1]

    def _ask(self, method: str, url: str, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
        import urllib3

        try:
            with urllib3.PoolManager(ca_certs=self._access.ca_file or None) as pool:
                answer = pool.request(
                    method, url, body=body, headers=headers, timeout=_TIMEOUT_S, retries=False, redirect=False,
                    preload_content=False,
                )  # fmt: skip
                data = answer.read(_MAX_ANSWER_BYTES + 1)
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ProviderFailedError(url=url, reason=str(error)) from error
        if answer.status != 200:
            raise ProviderFailedError(url=url, reason=f"status {answer.status}")
        if len(data) > _MAX_ANSWER_BYTES:
            raise ProviderFailedError(url=url, reason=f"more than {_MAX_ANSWER_BYTES} bytes")
        return bytes(data)


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
