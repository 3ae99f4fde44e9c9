"""Throw-away OpenPGP keys made by the real gpg."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools import need


def gpg(home: Path, *arguments: str, data: bytes = b"", at: str | None = None) -> bytes:
    """Run gpg in `home`; `at` is the time it takes for now, such as `20200101T000000`."""
    clock = [] if at is None else ["--faked-system-time", at]
    command = [need("gpg"), "--homedir", str(home), "--batch", "--no-tty", "--quiet", "--pinentry-mode", "loopback"]
    done = subprocess.run(
        [*command, "--passphrase", "", *clock, *arguments],
        input=data,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@contextmanager
def gpg_home(*users: str, expire: str = "never", at: str | None = None) -> Iterator[Path]:
    """Make a GnuPG home with a key for each of `users`; its agent is ended afterwards."""
    # Sockets have short names, and pytest's directories have long ones.
    with tempfile.TemporaryDirectory(prefix="gpg-") as name:
        home = Path(name)
        home.chmod(0o700)
        for user in users:
            gpg(home, "--quick-generate-key", user, "ed25519", "sign", expire, at=at)
        try:
            yield home
        finally:
            subprocess.run(["gpgconf", "--homedir", name, "--kill", "all"], check=False, capture_output=True)
