"""Boot control through U-Boot's environment; `deploy/u-boot/boot.cmd` is the other half.

The environment is read and written by the real `fw_printenv` and `fw_setenv` (of libubootenv), which know where it
lies from their configuration, `fw_env.config`. How it is used, and why not otherwise:

* Two copies are demanded. `fw_setenv` writes the older one whole, with a new number and checksum, and syncs it, so a
  power cut leaves one copy that is right. With a single copy it would leave none: U-Boot would take the environment
  that it was built with and start the first slot, which may be the half-written one.
* Every change is one run of `fw_setenv` with a script: all our variables change together. It is made also when
  nothing seems to change, because what can be read may be the work of a killed program that is not durable yet.
* No default environment is given to the tools. They would read it in silence when both copies are damaged, and
  write what they read; here that is an error.

The variables are those of `install.countdown` with `OVERHAUL_` before their names, as U-Boot's environment belongs
to others, too: `OVERHAUL_ORDER`, `OVERHAUL_X_OK`, `OVERHAUL_X_TRY`. One that is missing has the value of a device
that was never updated.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from overhaul.host.files import require_writable
from overhaul.host.processes import ProcessResult, ProgramFailedError, ProgramMissingError, run
from overhaul.install.boot import BootControlError, SlotBootState
from overhaul.install.countdown import (
    BootVariables,
    chosen_slot,
    parse_variables,
    render_variables,
    slot_state,
    with_bad,
    with_good,
    with_trial,
)
from overhaul.install.running import RunningSystem

_PREFIX = "OVERHAUL_"
_COPIES = 2
#: A path that is never there; without it the tools look for /etc/u-boot-initial-env.
_NO_DEFAULTS = "/dev/null/none"
#: The tools wait for each other without end.
_TIMEOUT_S = 60.0


class RunsPrograms(Protocol):
    """Runs a program to its end; `host.processes.run` does."""

    def __call__(
        self, argv: Sequence[str | Path], *, input_bytes: bytes = b"", timeout_s: float | None = None
    ) -> ProcessResult:
        """Return what it printed, or raise `ProgramFailedError`."""


class UBoot:
    """Implements `BootControl` on the environment that the file `configuration` (a `fw_env.config`) describes."""

    def __init__(
        self,
        configuration: Path,
        slots: Mapping[str, Path],
        *,
        root: Path = Path("/"),
        run_program: RunsPrograms = run,
    ) -> None:
        self._configuration = configuration
        self._slots = tuple(slots)
        self._running = RunningSystem(slots, root=root)
        self._run_program = run_program

    def booted(self) -> str:
        """Return the slot that the kernel was started from."""
        return self._running.slot()

    def boot_id(self) -> str:
        """Return the kernel's random id of this start."""
        return self._running.boot_id()

    def primary(self) -> str:
        """Return the slot that U-Boot would choose now."""
        return chosen_slot(self._load())

    def state(self, slot: str) -> SlotBootState:
        """Return what U-Boot would do with `slot`."""
        return slot_state(self._load(), slot)

    def require_ready(self, slot: str) -> None:
        """Refuse an environment that cannot be read, has one copy, or lies where nothing can be written."""
        places = self._require_copies()
        with_bad(self._load(), slot)
        try:
            for place in places:
                # The tools know places that are no files, such as /dev/ubi0:environment.
                if place.exists():
                    require_writable(place)
        except OSError as error:
            raise self._error(f"{error.filename} cannot be written ({error.strerror})") from error

    def mark_bad(self, slot: str) -> None:
        """Make sure, durably, that `slot` is not booted."""
        self._change(lambda variables: with_bad(variables, slot))

    def try_next(self, slot: str, *, attempts: int) -> None:
        """Boot `slot` next, at most `attempts` times until it is marked good."""
        self._change(lambda variables: with_trial(variables, slot, attempts=attempts))

    def mark_good(self, slot: str) -> None:
        """Confirm `slot`: it boots from now on."""
        self._change(lambda variables: with_good(variables, slot))

    def _load(self) -> BootVariables:
        printed = self._run("fw_printenv").stdout.decode("utf-8", "surrogateescape")
        # A value with a newline looks like two variables, but none of ours has one.
        pairs = (line.partition("=") for line in printed.splitlines())
        ours = {name.removeprefix(_PREFIX): value for name, _, value in pairs if name.startswith(_PREFIX)}
        return parse_variables(ours, self._slots)

    def _change(self, changed: Callable[[BootVariables], BootVariables]) -> None:
        self._require_copies()
        wanted = render_variables(changed(self._load()))
        script = "".join(f"{_PREFIX}{name}={value}\n" for name, value in wanted.items())
        self._run("fw_setenv", "-s", "/dev/stdin", input_bytes=script.encode())

    def _require_copies(self) -> tuple[Path, ...]:
        """Return the files or devices that hold the copies."""
        try:
            lines = self._configuration.read_text(errors="replace").splitlines()
        except OSError as error:
            raise self._error(f"{error.strerror or error}; write it as U-Boot's documentation says") from error
        copies = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if len(copies) != _COPIES:
            raise self._error(
                f"it describes {len(copies)} copies of the environment, and a power cut could leave none that is "
                "right; build U-Boot with CONFIG_SYS_REDUNDAND_ENVIRONMENT and describe both"
            )
        return tuple(Path(line.split()[0]) for line in copies)

    def _run(self, program: str, *arguments: str, input_bytes: bytes = b"") -> ProcessResult:
        argv: list[str | Path] = [program, "-c", self._configuration, "-f", _NO_DEFAULTS, *arguments]
        try:
            return self._run_program(argv, input_bytes=input_bytes, timeout_s=_TIMEOUT_S)
        except ProgramMissingError as error:
            raise self._error(f"{program} is not installed; install libubootenv-tool") from error
        except ProgramFailedError as error:
            said = f" ({error.stderr_tail})" if error.stderr_tail else ""
            raise self._error(
                f"{program} {error.reason}{said}; make the environment with `saveenv` at U-Boot's prompt, and see "
                "that the configuration names its place and size"
            ) from error

    def _error(self, reason: str) -> BootControlError:
        return BootControlError(place=str(self._configuration), reason=reason)
