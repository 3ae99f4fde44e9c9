"""Programs of the device's maker that run after a deployment was made, and when a new one runs for the first time."""

import os
from collections.abc import Sequence
from pathlib import Path

from overhaul.errors import DeviceError
from overhaul.install.health import Runner


class HookFailedError(DeviceError):
    """A hook did not do its work; the update waits for it."""

    def __init__(self, *, path: Path, detail: str) -> None:
        self.path = path
        self.detail = detail
        super().__init__(
            f"The hook {path} failed ({detail}); the deployment is in place and is not restarted into before the hook "
            "succeeds: mend it and run the command again."
        )


def hooks_in(directory: Path) -> list[Path]:
    """Return the executable programs of `directory`, by name; none when it is not there."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_file() and os.access(path, os.X_OK))


def run_hooks(hooks: Sequence[Path], arguments: Sequence[str], *, run: Runner, timeout_s: float) -> None:
    """Run hooks one after the other with the same arguments.

    Raises:
        HookFailedError: One failed or took too long; those after it were not begun.
    """
    for hook in hooks:
        answer = run((str(hook), *arguments), timeout_s=timeout_s)
        if answer.exit_code == 0:
            continue
        end = f"not done after {timeout_s:g} s" if answer.exit_code is None else f"exit code {answer.exit_code}"
        said = answer.output.strip()[-500:]
        raise HookFailedError(path=hook, detail=f"{end}, {said}" if said else end)
