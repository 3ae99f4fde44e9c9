"""Passwords as they are kept: scrypt with its parameters and salt in one line of text.

    scrypt$N$R$P$SALT$KEY        salt and key in hexadecimal digits

Two derivations at most run at once in a process, so that guessing cannot take the server's memory or both its CPUs.
"""

import hmac
import os
import threading

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from overhaul.errors import InputError

MIN_LENGTH = 12
#: Longer ones are refused before they cost anything.
MAX_LENGTH = 1024
_SALT_BYTES = 16
_KEY_BYTES = 32
#: 32 MiB of memory three times over: what OWASP gives as equal to 128 MiB once.
_N, _R, _P = 1 << 15, 8, 3

_AT_ONCE = threading.BoundedSemaphore(2)


class WeakPasswordError(InputError):
    """A password that is too short, too long, or the operator's own name."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The password cannot be used: {reason}.")


def check_password(password: str, *, name: str) -> None:
    """Raise `WeakPasswordError` unless `password` may be set for the operator `name`."""
    if len(password) < MIN_LENGTH:
        raise WeakPasswordError(f"it has {len(password)} characters, fewer than {MIN_LENGTH}; take a sentence")
    if len(password) > MAX_LENGTH:
        raise WeakPasswordError(f"it has more than {MAX_LENGTH} characters")
    if len(set(password)) < 5 or (name.casefold() in password.casefold() and len(password) < len(name) + MIN_LENGTH):
        raise WeakPasswordError("it is too easy to guess; take a sentence that only you would write")


def hash_password(password: str) -> str:
    """Return `password` as it is kept."""
    salt = os.urandom(_SALT_BYTES)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_derive(password, salt, _N, _R, _P).hex()}"


def password_matches(password: str, kept: str | None) -> bool:
    """Tell whether `password` is the one kept; takes as long when None is kept, and is then never true."""
    scheme, n, r, p, salt, key = (kept or _NOBODY).split("$")
    if scheme != "scrypt" or len(password) > MAX_LENGTH:
        return False
    derived = _derive(password, bytes.fromhex(salt), int(n), int(r), int(p))
    return hmac.compare_digest(derived, bytes.fromhex(key)) and kept is not None


def _derive(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    with _AT_ONCE:
        return Scrypt(salt=salt, length=_KEY_BYTES, n=n, r=r, p=p).derive(password.encode())


#: Compared with when there is no such operator, so that the answer takes as long.
_NOBODY = f"scrypt${_N}${_R}${_P}${'00' * _SALT_BYTES}${'00' * _KEY_BYTES}"
