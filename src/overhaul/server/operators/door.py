"""The door of the dashboard: cookies, forms and who stands before it.

Every cookie is `__Host-`, Secure, HttpOnly and SameSite=Strict (but for the one that waits for an identity provider):
no other site, no subdomain, no script and no plain connection gets hold of one. A form is taken only with the token
that belongs to its cookie, and never from a page that the browser says is another site's. All that is read here is
bounded.
"""

import secrets
from collections.abc import Mapping
from typing import Literal
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from overhaul.errors import InputError
from overhaul.server.operators.sessions import form_token_matches

SESSION_COOKIE = "__Host-overhaul"
#: Holds what the form of the login page belongs to, before there is a session.
LOGIN_COOKIE = "__Host-overhaul-login"
FORM_TOKEN = "form_token"  # noqa: S105 - the name of the field
#: Holds what the answer of an identity provider belongs to. Lax, because the provider's page leads back with it.
OIDC_COOKIE = "__Host-overhaul-oidc"
_MAX_FORM_BYTES = 32 << 10
_MAX_FIELDS = 40

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class RefusedFormError(InputError):
    """A form that did not come from our own page, or cannot be read."""

    http_status = 403


def address_of(request: Request) -> str:
    """Return the network address of whoever asks."""
    return request.client.host if request.client else ""


def safe_next(given: str) -> str:
    """Return where to go after signing in: a page of the dashboard, whatever was asked for."""
    return given if given.startswith("/fleet") and "\\" not in given and given.isprintable() else "/fleet"


async def read_form(request: Request, *, cookie: str) -> Mapping[str, str]:
    """Return the fields of a form that belongs to the cookie named `cookie`.

    Raises:
        RefusedFormError: It does not, comes from another site, or is too large.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise RefusedFormError("This form was sent by another site; nothing was done.")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise RefusedFormError("A form is sent as application/x-www-form-urlencoded.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_FORM_BYTES:
            raise RefusedFormError(f"A form has at most {_MAX_FORM_BYTES} bytes.")
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError as error:
        raise RefusedFormError("The form cannot be read.") from error
    held = request.cookies.get(cookie, "")
    if not held:
        raise RefusedFormError(
            "Your browser sent no cookie with this form. Sign in over https (or on this very machine), with cookies "
            "allowed, and try again."
        )
    if not form_token_matches(fields.get(FORM_TOKEN, ""), held):
        raise RefusedFormError("This form is too old or not from this page; go back, load the page again and retry.")
    return fields


def new_login_cookie() -> str:
    """Return bits for the cookie of the login page."""
    return secrets.token_urlsafe(32)


def set_cookie(response: Response, name: str, value: str, *, max_age_s: int) -> None:
    """Give the browser a cookie."""
    site: Literal["lax", "strict"] = "lax" if name == OIDC_COOKIE else "strict"
    response.set_cookie(name, value, max_age=max_age_s, path="/", secure=True, httponly=True, samesite=site)


def drop_cookie(response: Response, name: str) -> None:
    """Take a cookie back."""
    response.delete_cookie(name, path="/", secure=True, httponly=True, samesite="strict")
