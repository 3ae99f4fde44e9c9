"""The processes that run beside the server where one machine does it all: signer and workers of builds, the desk.

Each is the same program that an operator can run as a unit of its own. Signer and desk are processes so that their
keys are never where requests are answered or images are built. One that ends is started again, ever more slowly
while it keeps ending; all of them end with the server, also when that is killed.
"""

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from overhaul.errors import OperatorError
from overhaul.host import exchange
from overhaul.host.processes import find_program
from overhaul.server.settings import ImagesOnDemand

_SIGNER_READY_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.02
#: A worker gives its build back when it is asked to end, which takes moments.
_GRACE_S = 20.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0

_LOGGER = logging.getLogger(__name__)


class SignerEndedError(OperatorError):
    """The signer that should run beside the server does not."""

    def __init__(self, *, settings: Path) -> None:
        self.settings = settings
        super().__init__(
            f"The signer of images on demand did not start; what it said stands above. Mend {settings}, or set "
            "`build_workers = 0` in [server] where signer and workers run on their own."
        )


class Companion:
    """One process that is kept running."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self._name = name
        # The kernel ends the process with the thread that started it, which lives as long as the server.
        self._argv = [find_program("setpriv"), "--pdeathsig", "TERM", sys.executable, "-m", "overhaul", *arguments]
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        #: Set once the first process has ended.
        self.has_ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def start(self) -> None:
        """Start it, and keep it running."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Ask it to end, and do not start it again."""
        with self._changing:
            if not self._stopping.is_set():
                self._stopping.set()
                if self._process is not None:
                    self._process.terminate()

    def stop(self) -> None:
        """End it and wait until it has ended."""
        self.ask_to_stop()
        process = self._process
        if process is not None:
            try:
                process.wait(timeout=_GRACE_S)
            except subprocess.TimeoutExpired:
                _LOGGER.warning("%s did not end within %d s and is killed", self._name, _GRACE_S)
                process.kill()
        self._thread.join()

    def _keep(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            with self._changing:
                if self._stopping.is_set():
                    return
                # A session of its own: Ctrl-C is for the server, which then ends its companions in order.
                process = self._process = subprocess.Popen(
                    self._argv, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), start_new_session=True
                )
            began = time.monotonic()
            status = process.wait()
            self.has_ended.set()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > _LONGEST_WAIT_S:
                wait_s = _FIRST_WAIT_S
            _LOGGER.error("%s ended with status %d; it is started again in %g s", self._name, status, wait_s)
            if self._stopping.wait(wait_s):
                return
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


@contextlib.contextmanager
def companions(settings: ImagesOnDemand) -> Iterator[None]:
    """Keep the signer and the workers running inside the block; the signer answers when the block begins.

    Where a signer answers at its socket already, that one is used.

    Raises:
        UnusableSettingsError: The file that says how images are built cannot be used.
        SignerEndedError: The signer does not start.
    """
    from overhaul.server.asu import works_of

    address = works_of(settings).socket
    options = ("--settings", str(settings.builds))
    with contextlib.ExitStack() as running:
        if settings.workers > 0 and not _answers(address):
            signer = Companion("the signer", ("builds", "signer", *options))
            signer.start()
            running.callback(signer.stop)
            _wait_for_signer(signer, address, settings.builds)
        workers = [Companion("a worker", ("builds", "worker", *options)) for _ in range(settings.workers)]
        for worker in workers:
            worker.start()
            # They end before the signer does: what they have built is still signed.
            running.callback(worker.stop)
        yield
        for worker in workers:
            worker.ask_to_stop()  # side by side, and waited for one after the other


@contextlib.contextmanager
def desk_beside(repository: Path) -> Iterator[None]:
    """Keep the desk of a repository running inside the block; pages say so while it does not answer yet."""
    desk = Companion("the desk", ("operator", "desk", "--repository", str(repository)))
    desk.start()
    try:
        yield
    finally:
        desk.stop()


def _answers(address: Path) -> bool:
    if exchange.answers(address):
        return True
    # One that was killed leaves its socket behind.
    address.unlink(missing_ok=True)
    return False


def _wait_for_signer(signer: Companion, address: Path, settings: Path) -> None:
    until = time.monotonic() + _SIGNER_READY_WITHIN_S
    while not address.exists():
        if signer.has_ended.wait(_LOOK_EVERY_S) or time.monotonic() > until:
            raise SignerEndedError(settings=settings)
