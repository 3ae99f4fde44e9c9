"""The updater as a service: cycles with pauses between them, until an update waits for its restart or it is stopped.

After a good cycle the pause is the interval, after a failure it begins at half a minute and doubles up to the
interval; both are spread by chance, so that a fleet that was switched on together does not ask together. A stop
(SIGTERM) ends a pause at once; in the middle of a step it interrupts it, and the next start goes on there.

Threads may wait for a server that says nothing, for minutes. Nobody waits for them after a stop: what they would have
brought is not needed, and a process that ends anywhere leaves nothing that the next one cannot take up.
"""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from overhaul.dialects.ostree.device.exitcodes import INTERRUPTED_SENTENCE, ExitCode
from overhaul.dialects.ostree.device.updating import Outcome, Result
from overhaul.errors import OverhaulError
from overhaul.host.signals import handling

_FIRST_PAUSE_S = 30.0
#: Part of a pause that chance may add.
_SPREAD = 0.25
#: What a stop leaves to end in order.
_GRACE_S = 5.0


def serve(
    cycle: Callable[[], Outcome],
    *,
    interval_s: float,
    stopped: threading.Event,
    told: Callable[[Outcome | OverhaulError], None],
    spread: Callable[[], float] = random.random,
) -> Outcome | None:
    """Run cycles until one leads to a restart, which is returned, or until it is stopped."""
    failures = 0
    while not stopped.is_set():
        try:
            outcome = cycle()
        except OverhaulError as error:
            told(error)
            failures += 1
            pause_s = min(interval_s, _FIRST_PAUSE_S * 2 ** min(failures - 1, 16))
        else:
            told(outcome)
            failures = 0
            if outcome.result in {Result.RESTARTING, Result.DEPLOYED, Result.ROLLED_BACK}:
                # What is deployed waits for a restart; nothing more can be done before it.
                return outcome
            # A restart that is held back is asked for again soon.
            pause_s = min(interval_s, _FIRST_PAUSE_S) if outcome.result is Result.RESTART_HELD else interval_s
        stopped.wait(pause_s * (1 + _SPREAD * spread()))
    return None


@contextmanager
def stopping_on_signals(*, stopped_code: int = ExitCode.INTERRUPTED) -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets; outside a pause this signal and SIGINT also interrupt what runs.

    When that does not end within some seconds the process does, after SIGTERM with `stopped_code`.
    """
    stopped = threading.Event()

    def leave() -> None:
        code = stopped_code if stopped.is_set() else ExitCode.INTERRUPTED
        if code == ExitCode.INTERRUPTED:
            os.write(2, f"{INTERRUPTED_SENTENCE}\n".encode())
        os._exit(code)

    end = threading.Timer(_GRACE_S, leave)
    end.daemon = True

    def stop(number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            stopped.set()
        if not end.ident:
            end.start()
        raise KeyboardInterrupt

    with handling((signal.SIGTERM, signal.SIGINT), stop):
        try:
            yield stopped
        finally:
            end.cancel()
