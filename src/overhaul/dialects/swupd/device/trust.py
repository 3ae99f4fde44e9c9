"""What makes a version trustworthy: the certificate of the system, its successor, and the clock.

Only the list of bundles (MoM) and the version files are signed; everything else follows from them by hashes.
Checking is switched off by nothing but the flags that say so.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from overhaul.dialects.swupd.device.errors import ClockError, SignatureError
from overhaul.errors import OverhaulError

if TYPE_CHECKING:  # a fifth of a diagnosis would be spent on importing this where it is not needed
    from cryptography.x509 import Certificate

_DAY_S = 86_400


@dataclass(frozen=True)
class Trust:
    """The certificates of one run, and what it was told to leave unchecked."""

    #: Tried in order: a system that renews its certificate ships the next one beside it.
    certificates: tuple[Path, ...]
    checks_mom: bool = True
    checks_latest: bool = True

    @classmethod
    def at(cls, certificate: Path, *, checks_mom: bool, checks_latest: bool) -> "Trust":
        """Return the trust in `certificate` and in what lies beside it with `.alt` at the end of its name."""
        paths = (certificate, certificate.with_name(certificate.name + ".alt"))
        return cls(paths, checks_mom=checks_mom, checks_latest=checks_mom and checks_latest)

    def verify(self, content: bytes, signature: bytes, *, name: str, has_expiry: bool) -> None:
        """Check a detached signature; `has_expiry` says whether certificates must be valid today.

        Raises:
            SignatureError: No certificate vouches for `content`.
        """
        from overhaul.dialects.swupd.signing import SignatureRefusedError, verify_detached

        now = datetime.now(UTC) if has_expiry else None
        refusal: OverhaulError | None = None
        for number, path in enumerate(self.certificates):
            try:
                if number and not path.exists():
                    continue
                trusted = _load(path)
                verify_detached(content, signature, trusted=trusted, name=name, now=now)
            except (SignatureRefusedError, SignatureError) as error:
                refusal = refusal or error
            else:
                return
        reason = str(getattr(refusal, "reason", refusal))
        raise SignatureError(what=name, reason=reason) from refusal

    def check_certificate(self) -> None:
        """Refuse, before anything is fetched, to go on without a certificate.

        Raises:
            SignatureError: It cannot be read.
        """
        if self.checks_mom and not any(path.is_file() for path in self.certificates):
            raise SignatureError(what=str(self.certificates[0]), reason="the certificate is missing")


def _load(path: Path) -> "tuple[Certificate, ...]":
    from cryptography.x509.oid import ExtensionOID

    from overhaul.dialects.swupd.signing import UnusableCertificateError, load_trusted

    try:
        data = path.read_bytes()
    except OSError as error:
        raise SignatureError(what=str(path), reason=f"it cannot be read ({error.strerror})") from error
    try:
        trusted = load_trusted(data, name=str(path))
    except UnusableCertificateError as error:
        raise SignatureError(what=str(path), reason=error.reason) from error
    for certificate in trusted:
        for extension in certificate.extensions:
            # Whoever asks for it means that the certificate must not be used without asking; we cannot ask.
            if extension.critical and extension.oid == ExtensionOID.AUTHORITY_INFORMATION_ACCESS:
                raise SignatureError(what=str(path), reason="it demands OCSP, which is not supported")
    return trusted


def check_clock(
    built_at_s: int | None,
    *,
    now_s: Callable[[], float] = time.time,
    set_clock: Callable[[float], None] = lambda stamp: time.clock_settime(time.CLOCK_REALTIME, stamp),
) -> bool:
    """Compare the clock with the time the system was built; return whether it had to be set forward to that.

    Raises:
        ClockError: Nobody knows when that was, or the clock cannot be set.
    """
    if built_at_s is None:
        raise ClockError(reason="the system does not tell when it was built")
    if now_s() >= built_at_s - _DAY_S:
        return False
    try:
        set_clock(float(built_at_s))
    except OSError as error:
        raise ClockError(reason=f"it is before the system was built and cannot be set ({error.strerror})") from error
    return True
