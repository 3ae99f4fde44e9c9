"""The exit codes of `refkit-ostree-update` beyond those of the error families."""

from enum import IntEnum

INTERRUPTED_SENTENCE = "Interrupted; what was done so far is kept, run the command again to go on."


class ExitCode(IntEnum):
    """What the program adds to the families of `overhaul.errors`."""

    DONE = 0
    HOOK_FAILED = 9
    UNHEALTHY = 10
    NOTHING_TO_DO = 20
    HELD = 21
    INTERRUPTED = 130
