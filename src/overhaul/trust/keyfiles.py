"""Files that hold private keys, PINs and other secrets: nobody but their owner may read them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from overhaul.errors import OperatorError

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

#: Asked for the passphrase of a key file, by file name; None when there is none to give.
Passphrases = Callable[[str], bytes | None]


class UnusableKeyringError(OperatorError):
    """A keyring or key file that is absent, damaged, exposed or locked."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be used: {reason}.")


def load_key_file(path: Path, *, passphrases: Passphrases | None = None) -> "CryptoSigner":
    """Return a signer for the private key (PKCS#8 PEM: ed25519, or ECDSA on P-256 or P-384) in the file `path`.

    Raises:
        UnusableKeyringError: It is absent, damaged, readable by others, or locked and no passphrase opens it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.exceptions import UnsupportedLibraryError
    from securesystemslib.signer import CryptoSigner

    data = read_secret(path)
    passphrase = None
    if b"ENCRYPTED" in data.split(b"\n", 1)[0]:
        passphrase = passphrases(path.name) if passphrases else None
        if not passphrase:
            raise UnusableKeyringError(path=path, reason="it is locked by a passphrase and none was given")
    try:
        return CryptoSigner(load_pem_private_key(data, passphrase))
    except (ValueError, TypeError, UnsupportedAlgorithm, UnsupportedLibraryError) as error:
        reason = "its passphrase is wrong or it is damaged"
        raise UnusableKeyringError(path=path, reason=reason) from error


def read_secret(path: Path) -> bytes:
    """Return what is in the file `path`.

    Raises:
        UnusableKeyringError: Others can read it, or it cannot be read here.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise UnusableKeyringError(path=path, reason="others can read this secret; run `chmod 600` on it")
        return path.read_bytes()
    except OSError as error:
        raise UnusableKeyringError(path=path, reason=error.strerror or str(error)) from error
