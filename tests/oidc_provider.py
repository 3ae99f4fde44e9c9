"""A stand-in for an OpenID Connect provider: what an authorization code with PKCE needs of one, and lies on demand.

No real provider can be run in these tests. It checks what a real one checks of a client (redirect address, client
secret, PKCE verifier, each code once), and signs tokens with a real key.
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = "overhaul-dashboard"
SECRET = "the secret of the client"

Claims = dict[str, Any]


class Provider:
    """What the provider knows, and what it lies about."""

    def __init__(self) -> None:
        self.url = ""
        self.key = RSAKey.generate_key(2048, {"kid": "one"})
        #: Who sits before the browser.
        self.person = "ada"
        self.redirect_url = ""
        self.codes: dict[str, dict[str, str]] = {}
        self.change: Callable[[Claims], Claims] = lambda claims: claims
        self.make: Callable[[Claims], str] = self.sign

    def sign(self, claims: Claims) -> str:
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)

    def discovery(self) -> dict[str, str]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
        }

    def authorize(self, asked: dict[str, str]) -> str | None:
        """Return where the browser goes back to, or None for a client that asks wrongly."""
        well = {"response_type": "code", "client_id": CLIENT, "redirect_uri": self.redirect_url}
        if any(asked.get(name) != value for name, value in well.items()) or asked["code_challenge_method"] != "S256":
            return None
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        return f"{self.redirect_url}?{urlencode({'code': code, 'state': asked['state'], 'iss': self.url})}"

    def token(self, fields: dict[str, str], authorization: str) -> tuple[int, dict[str, str]]:
        pair = base64.b64encode(f"{CLIENT}:{SECRET.replace(' ', '%20')}".encode()).decode()
        asked = self.codes.pop(fields.get("code", ""), None)
        if asked is None or authorization != f"Basic {pair}" or fields["redirect_uri"] != asked["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        digest = hashlib.sha256(fields["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
            return 400, {"error": "invalid_grant"}
        now = int(time.time())
        claims = {
            "iss": self.url, "sub": "1", "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": asked["nonce"],
            "preferred_username": self.person,
        }  # fmt: skip
        return 200, {"access_token": "unused", "token_type": "Bearer", "id_token": self.make(self.change(claims))}


@contextmanager
def provider() -> Iterator[Provider]:
    """Serve a provider on loopback for the length of a block."""
    known = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if address.path == "/.well-known/openid-configuration":
                self._send(200, known.discovery())
            elif address.path == "/keys":
                self._send(200, {"keys": [known.key.as_dict(private=False)]})
            elif address.path == "/authorize":
                asked = {name: values[0] for name, values in parse_qs(address.query).items()}
                back = known.authorize(asked)
                self.send_response(302 if back else 400)
                self.send_header("location", back or "")
                self.send_header("content-length", "0")
                self.end_headers()
            else:
                self._send(404, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            fields = {name: values[0] for name, values in parse_qs(body).items()}
            self._send(*known.token(fields, self.headers.get("authorization", "")))

        def _send(self, status: int, document: Any) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield known
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
