"""Private keys that never leave a PKCS#11 token: a smart card, a YubiKey, a network HSM, SoftHSM.

A key is named `hsm:ID?label=LABEL`: the number of its object on the token and the token's label, as
securesystemslib's HSM signer names them. The vendor's PKCS#11 library is named by the environment variable
PYKCS11LIB, because it differs from machine to machine. Tokens sign ECDSA on P-256 or P-384.

Everything a token, its library or python-pkcs11 can throw becomes `TokenError` here.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from securesystemslib.signer import Key, SecretsHandler, Signature, Signer

from overhaul.errors import OperatorError

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

MODULE_VARIABLE = "PYKCS11LIB"


class TokenError(OperatorError):
    """A token that is absent, locked, or does not hold the key."""

    def __init__(self, *, token: str, reason: str) -> None:
        self.token = token
        self.reason = reason
        super().__init__(
            f"The token key {token} cannot be used: {reason}; plug the token in, check its PIN, and let "
            f"{MODULE_VARIABLE} name the library of its vendor."
        )


class TokenSigner(Signer):
    """A signer whose key stays on its token; `pin` is asked for the PIN, by the token's label."""

    def __init__(self, token: str, public_key: "SSlibKey", *, pin: Callable[[str], str | None]) -> None:
        self._token = token
        self._public_key = public_key
        self._pin = pin

    @property
    def public_key(self) -> "SSlibKey":
        """The public half."""
        return self._public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "TokenSigner":
        """Return the signer of a key that is named as securesystemslib names it."""
        from securesystemslib.signer import SSlibKey

        if not isinstance(public_key, SSlibKey):
            raise TokenError(token=priv_key_uri, reason="its public half is of a kind that tokens do not have")
        return cls(priv_key_uri, public_key, pin=secrets_handler or (lambda _label: None))

    def sign(self, payload: bytes) -> Signature:
        """Return the token's signature of `payload`; raise `TokenError` when it makes none."""
        from securesystemslib.signer import HSMSigner

        with _explained(self._token):
            signer = HSMSigner.from_priv_key_uri(
                self._token, self._public_key, lambda _what: _required(self._token, self._pin)
            )
            return signer.sign(payload)


def read_token_key(token: str, *, pin: Callable[[str], str | None]) -> "SSlibKey":
    """Return the public half of the key on a token; raise `TokenError` when there is none that can sign here."""
    from securesystemslib.signer import HSMSigner

    with _explained(token):
        number, label = _parts(token)
        _uri, key = HSMSigner.import_(number, label or None, lambda _what: _required(token, pin))
        return key


def is_present(token: str) -> bool:
    """Tell whether the token is plugged in; its key is not asked for, since that may need the PIN."""
    try:
        with _explained(token):
            import pkcs11

            _number, label = _parts(token)
            library = pkcs11.lib(os.environ[MODULE_VARIABLE])
            return any(
                not label or slot_token.label == label
                for slot_token in library.get_tokens(token_flags=pkcs11.TokenFlag.TOKEN_INITIALIZED)
            )
    except TokenError:
        return False


def _parts(token: str) -> tuple[int, str]:
    """Return the number of the key and the label of the token."""
    address = urlsplit(token)
    if address.scheme != "hsm" or not address.path.isascii() or not address.path.isdigit():
        raise TokenError(token=token, reason="its name is not of the form hsm:ID?label=LABEL")
    return int(address.path), dict(parse_qsl(address.query)).get("label", "")


def _required(token: str, pin: Callable[[str], str | None]) -> str:
    given = pin(_parts(token)[1])
    if not given:
        raise TokenError(token=token, reason="it asks for a PIN and none was given")
    return given


@contextmanager
def _explained(token: str) -> Iterator[None]:
    """Turn what the libraries raise into `TokenError`."""
    _parts(token)
    if not os.environ.get(MODULE_VARIABLE):
        raise TokenError(token=token, reason=f"{MODULE_VARIABLE} is not set")
    try:
        import pkcs11.exceptions as failures
    except ImportError as error:
        raise TokenError(token=token, reason="python-pkcs11 is missing, install overhaul[pkcs11]") from error
    try:
        yield
    except failures.PKCS11Error as error:
        raise TokenError(token=token, reason=_words(error)) from error
    except (ValueError, RuntimeError, OSError) as error:
        raise TokenError(token=token, reason=str(error) or _words(error)) from error


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
