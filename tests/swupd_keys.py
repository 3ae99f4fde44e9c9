"""Keys and certificates made by the real `openssl`, as a publisher of swupd versions would make them."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.tools import need


@dataclass(frozen=True)
class SigningFiles:
    """A private key and its certificate, both PEM."""

    key: Path
    certificate: Path


def openssl(*arguments: str | Path) -> bytes:
    """Run `openssl`; return what it printed."""
    done = subprocess.run([need("openssl"), *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def self_signed(directory: Path, *, name: str = "swupd", options: tuple[str, ...] = (), days: int = 30) -> SigningFiles:
    """Make a self-signed certificate; `options` are those of `openssl req`."""
    files = SigningFiles(directory / f"{name}.key", directory / f"{name}.pem")
    kind = options or ("-newkey", "rsa:2048")
    openssl("req", "-x509", *kind, "-nodes", "-keyout", files.key, "-out", files.certificate, "-days", str(days),
            "-subj", f"/CN={name}")  # fmt: skip
    return files


def issued(directory: Path, issuer: SigningFiles, *, name: str, is_authority: bool = False) -> SigningFiles:
    """Make a certificate that `issuer` signed."""
    files = SigningFiles(directory / f"{name}.key", directory / f"{name}.pem")
    request, extensions = directory / f"{name}.csr", directory / f"{name}.ext"
    openssl(
        "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", files.key, "-out", request, "-subj", f"/CN={name}"
    )
    extensions.write_text(f"basicConstraints=critical,CA:{'TRUE' if is_authority else 'FALSE'}\n")
    openssl("x509", "-req", "-in", request, "-CA", issuer.certificate, "-CAkey", issuer.key, "-CAcreateserial",
            "-days", "30", "-extfile", extensions, "-out", files.certificate)  # fmt: skip
    return files
