"""Containers that boot a system."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path


def switch_off(process: "subprocess.Popen[bytes]") -> None:
    """End a running systemd-nspawn with all of its system; one that has ended is left alone."""
    # Killing systemd-nspawn alone would leave its system running; without its first process none goes on. It may
    # have none yet.
    while process.poll() is None:
        # A thread may have ended since it was listed, and a process been waited for since it was read.
        for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
