"""Configuration files of the client: INI, in three places, the later one wins.

    [GLOBAL]              for every command
    [update]              for one command; wins over GLOBAL
    [3rd-party-update]    for one command of 3rd-party repositories

Keys are long options with `_` for `-`. There are no blanks around `=`; `#` and `;` begin comments. A line that is
neither is an error and not skipped: a misspelt line must not switch off what its writer thought it switched on.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from overhaul.dialects.swupd.device.errors import WrongUsageError

#: Vendor, run time, administrator; below the host's root, as they are about the program and not a system it works on.
CONFIG_DIRECTORIES = (Path("/usr/share/defaults/swupd"), Path("/run/swupd"), Path("/etc/swupd"))
GLOBAL = "GLOBAL"

_SECTION = re.compile(r"\[([A-Za-z0-9-]+)\]")
_SETTING = re.compile(r"([A-Za-z0-9_-]+)=(.*)")
_MAX_BYTES = 1 << 20

Sections = dict[str, dict[str, str]]


def read_config(directories: Iterable[Path] = CONFIG_DIRECTORIES) -> Sections:
    """Return the settings of all configuration files, by section and key.

    Raises:
        WrongUsageError: A file is no configuration file.
    """
    sections: Sections = {}
    for directory in directories:
        path = directory / "config"
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise WrongUsageError(f"{path} cannot be read ({error.strerror})") from error
        if len(data) > _MAX_BYTES:
            raise WrongUsageError(f"{path} is too large for a configuration file")
        _add(sections, data.decode("utf-8", "replace"), path)
    return sections


def settings_of(sections: Mapping[str, Mapping[str, str]], command: str) -> dict[str, str]:
    """Return what holds for one command."""
    return {**sections.get(GLOBAL, {}), **sections.get(command, {})}


def _add(sections: Sections, text: str, path: Path) -> None:
    section: dict[str, str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.strip()
        if not bare or bare[0] in "#;":
            continue
        if heading := _SECTION.fullmatch(bare):
            name = heading[1]
            section = sections.setdefault(GLOBAL if name.upper() == GLOBAL else name.lower(), {})
        elif section is not None and (setting := _SETTING.fullmatch(bare)):
            section[setting[1].replace("-", "_").lower()] = setting[2]
        else:
            raise WrongUsageError(f"Line {number} of {path} is neither a section nor a setting: {bare[:80]!r}")
