"""Answers that the repository has signed: nothing comes out of here that did not verify, and nothing stale.

The static tree of a product is one target of the policies' role. What verified before and is still signed is not
fetched again, so that an unchanged repository costs one small request. Where the tree's own files differ from what is
signed, for a moment while they are written or because somebody changed them, they do not count: they are never asked.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from overhaul.dialects.atomupd.device.settings import TrustSettings
from overhaul.dialects.atomupd.signed_answers import decode_answers
from overhaul.errors import DeviceError, InputError
from overhaul.host.locks import LockedError, locked
from overhaul.transfer.fetcher import Fetcher
from overhaul.trust import roles
from overhaul.trust.client import TrustedRepository

#: A process may ask from several threads, and the lock between processes does not wait.
_ONE_AT_A_TIME = threading.Lock()
#: The daemon and the client it starts may ask at once; either is done in less.
_WAITS_S = 60.0


class NoRootOfTrustError(InputError):
    """The first root metadata cannot be read."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"The root of trust {path} cannot be read ({reason}); install the repository's root.json there."
        )


class TrustDirectoryError(DeviceError):
    """What is trusted cannot be kept."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"{path} cannot be made or written ({reason}); run the command as root, or set TrustDirectory."
        )


def signed_files(trust: TrustSettings, fetcher: Fetcher) -> Mapping[str, bytes]:
    """Return the static tree of the product, contents by path below `MetaUrl`.

    Raises:
        NoRootOfTrustError, TrustDirectoryError: The device lacks what it needs to verify anything.
        TrustError: The repository or its answers were refused, by the member that says why.
        NetworkError: It could not be read.
        LockedError: Another process has asked for a minute.
    """
    try:
        root = trust.root.read_bytes()
    except OSError as error:
        raise NoRootOfTrustError(path=trust.root, reason=error.strerror or str(error)) from error
    lock = trust.directory.with_name(f"{trust.directory.name}.lock")
    try:
        trust.directory.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise TrustDirectoryError(path=trust.directory, reason=error.strerror or str(error)) from error
    with _ONE_AT_A_TIME, _held(lock):
        repository = TrustedRepository(
            state_directory=trust.directory,
            base_url=trust.repository_url,
            bootstrap_root=root,
            fetcher=fetcher,
            clock=lambda: datetime.now(UTC),
        )
        if repository.poll():
            repository.refresh()
        return decode_answers(repository.read_target(roles.answers_path(trust.product, "atomupd")))


@contextmanager
def _held(path: Path) -> Iterator[None]:
    given_up = time.monotonic() + _WAITS_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(path, purpose="Verifying answers"))
                break
            except LockedError:
                if time.monotonic() > given_up:
                    raise
                time.sleep(0.1)
        yield
