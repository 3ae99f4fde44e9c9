"""The RAUC of the device: which configuration its service takes, and installing by its command.

RAUC runs as a service of its own. A client that wants it to use another configuration (after too many failures, or
for another chunk store) puts the path into the environment of the service manager and restarts the service, as
SteamOS's unit expects it:

    systemctl set-environment STEAMOS_CUSTOM_RAUC_CONF=PATH     or unset-environment STEAMOS_CUSTOM_RAUC_CONF
    systemctl import-environment http_proxy https_proxy
    systemctl restart rauc
"""

import configparser
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.atomupd.device.installing import Bundle, InstallationFailedError
from overhaul.dialects.atomupd.device.progress import JournalProgress, Tell
from overhaul.dialects.atomupd.device.raucstate import last_error
from overhaul.errors import InputError
from overhaul.host.files import replace_bytes
from overhaul.host.processes import ProgramFailedError, ProgramMissingError, following, run

_VARIABLE = "STEAMOS_CUSTOM_RAUC_CONF"
_JOURNAL = ("journalctl", "--unit=rauc.service", "--since=now", "--output=cat", "--follow")
#: How long the journal may lag behind the end of an installation.
_LAST_LINES_S = 2.0


class RaucConfigurationError(InputError):
    """RAUC's configuration cannot be used."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"RAUC's configuration {path} cannot be used: {reason}. Correct it and try again.")


@dataclass(frozen=True, kw_only=True)
class RaucConfiguration:
    """What a client must know of RAUC's configuration."""

    path: Path
    text: str
    #: Whether desync brings the chunks; else casync does.
    uses_desync: bool
    #: The index of the running slot that desync takes as seed, and whether it may make it anew by itself.
    seed_index: Path | None
    regenerates_seeds: bool


def read_rauc_configuration(path: Path) -> RaucConfiguration:
    """Return RAUC's configuration at `path`.

    Raises:
        RaucConfigurationError: It cannot be read, or wants desync without a seed.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        text = path.read_text()
        parser.read_string(text)
    except (OSError, UnicodeError) as error:
        raise RaucConfigurationError(path=path, reason=str(getattr(error, "strerror", None) or error)) from error
    except configparser.Error as error:
        raise RaucConfigurationError(path=path, reason=error.message.splitlines()[0]) from error
    try:
        uses_desync = parser.getboolean("casync", "use-desync", fallback=False)
    except ValueError as error:
        raise RaucConfigurationError(path=path, reason="use-desync is neither true nor false") from error
    arguments = parser.get("casync", "install-args", fallback="").split()
    seed = _seed_of(arguments)
    if uses_desync and seed is None:
        raise RaucConfigurationError(path=path, reason="it uses desync, but its install-args name no --seed")
    return RaucConfiguration(
        path=path,
        text=text,
        uses_desync=uses_desync,
        seed_index=seed,
        regenerates_seeds="--regenerate-invalid-seeds" in arguments,
    )


def with_store(configuration: RaucConfiguration, *, store_url: str, path: Path) -> RaucConfiguration:
    """Write a copy of a configuration whose chunks come from `store_url` to `path`, and return it."""
    lines = [line for line in configuration.text.splitlines() if not re.match(r"\s*storepath\s*=", line)]
    section = next((number for number, line in enumerate(lines) if line.strip() == "[casync]"), None)
    if section is None:
        lines.append("[casync]")
        section = len(lines) - 1
    lines.insert(section + 1, f"storepath={store_url}")
    # Relative paths in it begin at its own directory; RAUC's are written absolute on every system that has slots.
    replace_bytes(path, ("\n".join(lines) + "\n").encode())
    return read_rauc_configuration(path)


def apply_configuration(configuration: RaucConfiguration, *, standard: Path) -> None:
    """Restart RAUC's service with this configuration and the proxies of our environment.

    Raises:
        ProgramFailedError: The service manager refused.
    """
    if configuration.path == standard:
        run(["systemctl", "unset-environment", _VARIABLE])
    else:
        run(["systemctl", "set-environment", f"{_VARIABLE}={configuration.path}"])
    run(["systemctl", "import-environment", "http_proxy", "https_proxy"])
    run(["systemctl", "restart", "rauc"])


def ensure_seed(configuration: RaucConfiguration, *, booted_device: Path) -> None:
    """Make sure that desync finds the running slot's index and, beside it, the slot itself.

    desync takes `NAME.caibx` as the index of the file or device `NAME`.
    """
    index = configuration.seed_index
    if not configuration.uses_desync or index is None:
        return
    index.parent.mkdir(parents=True, exist_ok=True)
    link = index.with_suffix("")
    moved = not link.is_symlink() or link.readlink() != booted_device
    if moved:
        link.unlink(missing_ok=True)
        link.symlink_to(booted_device)
    if moved or not index.exists() or not configuration.regenerates_seeds:
        made = index.with_name(f".{index.name}.new")
        run(["desync", "make", made, booted_device])
        made.replace(index)


class RaucCommand:
    """Installs with `rauc install`, which asks the RAUC service."""

    def install(self, bundle: Bundle, *, tell: Tell) -> None:
        """Install `bundle`; progress comes from the journal."""
        with told_from_journal(tell):
            try:
                run(["rauc", "install", bundle.url])
            except ProgramFailedError as error:
                # The program says only on its standard output, among its steps, what its service knows.
                reason = last_error() or error.stderr_tail or error.reason
                raise InstallationFailedError(url=bundle.url, reason=reason.rstrip(".")) from error


@contextmanager
def told_from_journal(tell: Tell) -> Iterator[Callable[[], bool]]:
    """Tell the progress lines that RAUC's journal stands for while the block runs, 0% before and 100% after it.

    Yields what tells whether there is a journal; without one nothing comes in between. When the block fails, 100% is
    not told.
    """
    progress = JournalProgress()

    def take(line: str) -> bool:
        told = progress.feed(line)
        # The ends of the scale are told here: the journal may begin late, or lag behind.
        if told not in {None, "0%", "100%"}:
            tell(str(told))
        return not progress.ended

    def never() -> bool:
        return False

    tell("0%")
    with ExitStack() as journal:
        is_there = never
        with suppress(ProgramMissingError):
            is_there = journal.enter_context(following(_JOURNAL, take, linger_s=_LAST_LINES_S))
        yield is_there
    tell("100%")


def _seed_of(arguments: list[str]) -> Path | None:
    for number, argument in enumerate(arguments):
        if argument.startswith("--seed="):
            return Path(argument.removeprefix("--seed="))
        if argument == "--seed" and number + 1 < len(arguments):
            return Path(arguments[number + 1])
    return None
