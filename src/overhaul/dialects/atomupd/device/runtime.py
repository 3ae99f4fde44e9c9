"""The files a client keeps in its runtime directory, which every restart of the device empties.

update.json             the early client's last answer; removed when there is none, and by all later ones
failed_attempts.log     one line for each installation that failed: `FAILED UPDATE: TIME: WHAT RAUC SAID`
rauc.conf               RAUC's configuration with another chunk store, while one is asked for
"""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from overhaul.dialects.atomupd.candidates import Update, update_document
from overhaul.errors import OperatorError
from overhaul.host.files import replace_bytes

_FAILED = "FAILED UPDATE: "


class RuntimeDirectoryError(OperatorError):
    """The runtime directory cannot be made."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The runtime directory {path} cannot be used: {reason}.")


class RuntimeFiles:
    """The runtime directory `directory`."""

    def __init__(self, directory: Path, *, now: Callable[[], datetime]) -> None:
        self.directory = directory
        self._now = now
        self._failures = directory / "failed_attempts.log"
        self._answer = directory / "update.json"

    def make(self) -> None:
        """Make the directory where there is none."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RuntimeDirectoryError(path=self.directory, reason=error.strerror or str(error)) from error

    def store_answer(self, update: Update) -> None:
        """Keep what the server answered."""
        replace_bytes(self._answer, answer_text(update).encode())

    def forget_answer(self) -> None:
        """Remove an answer that is no longer true."""
        self._answer.unlink(missing_ok=True)

    def note_failure(self, reason: str) -> None:
        """Remember an installation that failed."""
        line = " ".join(reason.split())
        with self._failures.open("a", encoding="utf-8") as stream:
            stream.write(f"{_FAILED}{self._now().isoformat(timespec='seconds')}: {line}\n")

    @property
    def failures(self) -> int:
        """How many installations failed since the device was started."""
        try:
            text = self._failures.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return 0
        return sum(line.startswith(_FAILED) for line in text.splitlines())


def answer_text(update: Update) -> str:
    """Return an answer as the client stores and prints it: JSON with two blanks for each level."""
    return json.dumps(update_document(update), indent=2)
